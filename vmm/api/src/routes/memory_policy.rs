//! `GET /vm.memory-policy`

use axum::Json;
use axum::extract::State;

use super::{Api, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::types::PolicyConfig;

/// Tells what conversions of memory may do, by what asks for them.
#[utoipa::path(
    get,
    path = "/vm.memory-policy",
    operation_id = "vm.memory-policy",
    responses((status = 200, description = "The policy.", body = PolicyConfig), Errors)
)]
pub async fn memory_policy(State(api): State<Api>) -> Result<Json<PolicyConfig>, ApiError> {
    blocking(api, |api| api.policy()).await.map(|policy| Json(policy.into()))
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created};

    #[tokio::test]
    async fn everything_is_allowed_unless_something_is_said() {
        let server = Server::new();
        server.get("/vm.memory-policy").await.fails(404, "create one");
        created(&server).await;
        let policy = server.get("/vm.memory-policy").await.json();
        assert_eq!(policy, serde_json::json!({ "explicit": "allow", "implicit": "allow", "host": "allow" }));
    }
}
