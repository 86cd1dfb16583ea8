//! `PUT /vm.shutdown`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::NoBody;

/// Ends the machine; its configuration stays, so that it can be booted again.
#[utoipa::path(
    put,
    path = "/vm.shutdown",
    operation_id = "vm.shutdown",
    responses((status = 204, description = "It has ended."), Errors)
)]
pub async fn shutdown(State(api): State<Api>, _: NoBody) -> Result<StatusCode, ApiError> {
    blocking(api, |api| api.shutdown()).await?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created};

    #[tokio::test]
    async fn ends_what_runs() {
        let server = Server::new();
        server.put("/vm.shutdown", None).await.fails(404, "create one");
        created(&server).await;
        server.put("/vm.shutdown", None).await.fails(405, "not booted");
        server.put("/vm.boot", None).await.is(204);
        server.put("/vm.shutdown", None).await.is(204);
        assert_eq!(server.get("/vm.info").await.json()["state"], "Shutdown");
        server.put("/vm.shutdown", None).await.fails(405, "not booted");
    }
}
