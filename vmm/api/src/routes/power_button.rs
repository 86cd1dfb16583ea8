//! `PUT /vm.power-button`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::NoBody;

/// Presses the power button. A guest that obeys powers off, and the process ends, unless it was started to stay.
#[utoipa::path(
    put,
    path = "/vm.power-button",
    operation_id = "vm.power-button",
    responses((status = 204, description = "It was pressed."), Errors)
)]
pub async fn power_button(State(api): State<Api>, _: NoBody) -> Result<StatusCode, ApiError> {
    blocking(api, |api| api.power_button()).await?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created};

    #[tokio::test]
    async fn a_guest_that_obeys_ends_the_process() {
        let server = Server::new();
        server.put("/vm.power-button", None).await.fails(404, "create one");
        created(&server).await;
        server.put("/vm.power-button", None).await.fails(405, "not booted");
        server.put("/vm.boot", None).await.is(204);
        server.put("/vm.power-button", None).await.is(204);
        assert!(server.ended.recv().unwrap().is_ok());
        assert_eq!(server.get("/vm.info").await.json()["state"], "Shutdown");
    }
}
