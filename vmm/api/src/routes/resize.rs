//! `PUT /vm.resize`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::convert::ConfigError;
use crate::error::Errors;
use crate::extract::Body;
use crate::types::Resize;

/// Resizes the balloon of a machine that has one. Processors and memory don't change.
#[utoipa::path(
    put,
    path = "/vm.resize",
    operation_id = "vm.resize",
    request_body = Resize,
    responses((status = 204, description = "The guest was asked."), Errors)
)]
pub async fn resize(State(api): State<Api>, Body(size): Body<Resize>) -> Result<StatusCode, ApiError> {
    let refuse = |field: &str, reason: &str| Err(ConfigError::new(field, reason).into());
    match size {
        Resize { desired_vcpus: Some(_), .. } => refuse(
            "desired_vcpus",
            "processors are neither added nor removed: create the machine with as many as it needs",
        ),
        Resize { desired_ram: Some(_), .. } => {
            refuse("desired_ram", "memory does not grow: create the machine with as much as it needs")
        }
        Resize { desired_balloon: None, .. } => {
            refuse("desired_balloon", "nothing is asked for: give it a size in bytes")
        }
        Resize { desired_balloon: Some(bytes), .. } => {
            blocking(api, move |api| api.set_balloon(bytes)).await?;
            Ok(DONE)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, create, running};

    #[tokio::test]
    async fn only_a_balloon_changes() {
        let balloon = || Some(r#"{"desired_balloon":4096}"#.to_owned());
        Server::new().put("/vm.resize", balloon()).await.fails(404, "create one");
        let server = running().await;
        server.put("/vm.resize", balloon()).await.fails(400, "no balloon");
        server.put("/vm.resize", Some(r#"{"desired_vcpus":2}"#.into())).await.fails(400, "desired_vcpus");
        server.put("/vm.resize", Some(r#"{"desired_ram":2}"#.into())).await.fails(400, "desired_ram");
        server.put("/vm.resize", Some("{}".into())).await.fails(400, "nothing is asked for");

        let server = Server::new();
        let mut config: serde_json::Value = serde_json::from_str(&create("/proc/self/exe")).unwrap();
        config["balloon"] = serde_json::json!({ "size": 0 });
        config["memory"]["unmappable"] = false.into();
        config["platform"]["isolation"] = "none".into();
        server.put("/vm.create", Some(config.to_string())).await.is(204);
        server.put("/vm.resize", balloon()).await.fails(405, "not booted");
        server.put("/vm.boot", None).await.is(204);
        server.put("/vm.resize", balloon()).await.is(204);
    }
}
