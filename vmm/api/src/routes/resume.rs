//! `PUT /vm.resume`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::NoBody;

/// Lets a machine that stands still go on.
#[utoipa::path(
    put,
    path = "/vm.resume",
    operation_id = "vm.resume",
    responses((status = 204, description = "It runs."), Errors)
)]
pub async fn resume(State(api): State<Api>, _: NoBody) -> Result<StatusCode, ApiError> {
    blocking(api, |api| api.resume()).await?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created};

    #[tokio::test]
    async fn goes_on_after_a_pause_only() {
        let server = Server::new();
        server.put("/vm.resume", None).await.fails(404, "create one");
        created(&server).await;
        server.put("/vm.boot", None).await.is(204);
        server.put("/vm.resume", None).await.fails(405, "not paused");
        server.put("/vm.pause", None).await.is(204);
        server.put("/vm.resume", None).await.is(204);
        assert_eq!(server.get("/vm.info").await.json()["state"], "Running");
    }
}
