//! `PUT /vm.memory-policy`

use axum::Json;
use axum::extract::State;

use super::{Api, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::Body;
use crate::types::PolicyConfig;

/// Changes what conversions of memory may do, from the next one on, and tells what holds now. What is not said stays.
#[utoipa::path(
    put,
    path = "/vm.memory-policy",
    operation_id = "vm.memory-policy.set",
    request_body = PolicyConfig,
    responses((status = 200, description = "The policy that holds now.", body = PolicyConfig), Errors)
)]
pub async fn memory_policy_set(
    State(api): State<Api>,
    Body(change): Body<PolicyConfig>,
) -> Result<Json<PolicyConfig>, ApiError> {
    blocking(api, move |api| api.set_policy(&change)).await.map(|policy| Json(policy.into()))
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, running};

    #[tokio::test]
    async fn holds_at_once_and_after_a_reboot() {
        let put = |text: &str| Some(text.to_owned());
        Server::new().put("/vm.memory-policy", put("{}")).await.fails(404, "create one");
        let server = running().await;
        server.put("/vm.memory-policy", put(r#"{"host":"never"}"#)).await.fails(400, "host");
        server.put("/vm.memory-policy", put(r#"{"hosts":"allow"}"#)).await.fails(400, "hosts");
        let policy = server.put("/vm.memory-policy", put(r#"{"host":"refuse"}"#)).await.json();
        assert_eq!(policy, serde_json::json!({ "explicit": "allow", "implicit": "allow", "host": "refuse" }));
        let convert = format!(r#"{{"gpa":{},"size":4096,"to":"shared","contents":"discard"}}"#, 48 << 20);
        server.put("/vm.memory-convert", Some(convert.clone())).await.fails(403, "refused by policy");
        server.put("/vm.reboot", None).await.is(204);
        server.put("/vm.memory-convert", Some(convert.clone())).await.fails(403, "refused by policy");
        server.put("/vm.memory-policy", put(r#"{"host":"1000/s"}"#)).await.is(200);
        server.put("/vm.memory-convert", Some(convert)).await.is(200);
    }
}
