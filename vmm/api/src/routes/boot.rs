//! `PUT /vm.boot`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::NoBody;

/// Boots the machine that was created, or one that was shut down.
#[utoipa::path(
    put,
    path = "/vm.boot",
    operation_id = "vm.boot",
    responses((status = 204, description = "It runs."), Errors)
)]
pub async fn boot(State(api): State<Api>, _: NoBody) -> Result<StatusCode, ApiError> {
    blocking(api, |api| Ok(api.boot(|| Ok::<_, std::convert::Infallible>(()))?))
        .await?
        .unwrap_or_else(|never| match never {});
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, create, created, running};

    #[tokio::test]
    async fn boots_what_was_created_and_nothing_else() {
        let server = Server::new();
        server.put("/vm.boot", None).await.fails(404, "create one");
        server.put("/vm.create", Some(create("/nowhere/kernel"))).await.is(204);
        server.put("/vm.boot", None).await.fails(400, "/nowhere/kernel");
        server.put("/vm.delete", None).await.is(204);
        created(&server).await;
        server.put("/vm.boot", Some("{}".into())).await.fails(400, "takes no body");
        server.put("/vm.boot", None).await.is(204);
        server.put("/vm.boot", None).await.fails(405, "it runs already");
        server.put("/vm.pause", None).await.is(204);
        server.put("/vm.boot", None).await.fails(405, "vm.resume");
    }

    #[tokio::test]
    async fn more_memory_than_is_possible_is_the_clients_mistake() {
        let server = Server::new();
        let config = format!(r#"{{"payload":{{"kernel":"/proc/self/exe"}},"memory":{{"size":{}}}}}"#, 16u64 << 40);
        server.put("/vm.create", Some(config)).await.is(204);
        server.put("/vm.boot", None).await.fails(400, "more than an attribute map can hold");
    }

    #[tokio::test]
    async fn boots_again_what_was_shut_down() {
        let server = running().await;
        server.put("/vm.shutdown", None).await.is(204);
        server.put("/vm.boot", None).await.is(204);
    }
}
