//! `PUT /vm.reboot`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::NoBody;

/// Resets the machine, and answers when it has been built anew.
#[utoipa::path(
    put,
    path = "/vm.reboot",
    operation_id = "vm.reboot",
    responses((status = 204, description = "It runs anew."), Errors)
)]
pub async fn reboot(State(api): State<Api>, _: NoBody) -> Result<StatusCode, ApiError> {
    blocking(api, |api| api.reboot()).await?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created, running};

    #[tokio::test]
    async fn builds_the_machine_anew() {
        let server = Server::new();
        server.put("/vm.reboot", None).await.fails(404, "create one");
        created(&server).await;
        server.put("/vm.reboot", None).await.fails(405, "not booted");
        let server = running().await;
        let convert = format!("{{\"gpa\":{},\"size\":4096,\"to\":\"shared\",\"contents\":\"discard\"}}", 48 << 20);
        server.put("/vm.memory-convert", Some(convert)).await.is(200);
        assert_eq!(server.get("/vm.memory-stats").await.json()["shared_bytes"], 4096);
        server.put("/vm.reboot", None).await.is(204);
        assert_eq!(server.get("/vm.info").await.json()["state"], "Running");
        assert_eq!(server.get("/vm.memory-stats").await.json()["shared_bytes"], 0, "nothing of the old guest is left");
    }
}
