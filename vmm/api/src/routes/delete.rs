//! `PUT /vm.delete`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::NoBody;

/// Ends the machine, if it runs, and forgets it. Fine where there is none.
#[utoipa::path(
    put,
    path = "/vm.delete",
    operation_id = "vm.delete",
    responses((status = 204, description = "There is no machine now."), Errors)
)]
pub async fn delete(State(api): State<Api>, _: NoBody) -> Result<StatusCode, ApiError> {
    blocking(api, |api| {
        api.delete();
        Ok(())
    })
    .await?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created};

    #[tokio::test]
    async fn nothing_is_left_and_another_can_be_created() {
        let server = Server::new();
        server.put("/vm.delete", None).await.is(204);
        for _ in 0..3 {
            created(&server).await;
            server.put("/vm.boot", None).await.is(204);
            server.put("/vm.delete", None).await.is(204);
            server.get("/vm.info").await.fails(404, "there is no machine");
        }
    }
}
