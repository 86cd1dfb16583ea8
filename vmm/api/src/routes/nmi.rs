//! `PUT /vm.nmi`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::NoBody;

/// Gives the machine's processors a non-maskable interrupt.
#[utoipa::path(
    put,
    path = "/vm.nmi",
    operation_id = "vm.nmi",
    responses((status = 204, description = "It was given."), Errors)
)]
pub async fn nmi(State(api): State<Api>, _: NoBody) -> Result<StatusCode, ApiError> {
    blocking(api, |api| api.nmi()).await?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created, running};

    #[tokio::test]
    async fn only_a_machine_that_runs_gets_one() {
        let server = Server::new();
        server.put("/vm.nmi", None).await.fails(404, "create one");
        created(&server).await;
        server.put("/vm.nmi", None).await.fails(405, "not booted");
        running().await.put("/vm.nmi", None).await.is(204);
    }
}
