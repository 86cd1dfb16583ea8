//! `PUT /vm.pause`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::NoBody;

/// Lets the machine stand still: processors and devices.
#[utoipa::path(
    put,
    path = "/vm.pause",
    operation_id = "vm.pause",
    responses((status = 204, description = "It stands still."), Errors)
)]
pub async fn pause(State(api): State<Api>, _: NoBody) -> Result<StatusCode, ApiError> {
    blocking(api, |api| api.pause()).await?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created};

    #[tokio::test]
    async fn stands_still_once() {
        let server = Server::new();
        server.put("/vm.pause", None).await.fails(404, "create one");
        created(&server).await;
        server.put("/vm.pause", None).await.fails(405, "not booted");
        server.put("/vm.boot", None).await.is(204);
        server.put("/vm.pause", None).await.is(204);
        assert_eq!(server.get("/vm.info").await.json()["state"], "Paused");
        server.put("/vm.pause", None).await.fails(405, "paused already");
    }
}
