//! `PUT /vm.resize`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::convert::ConfigError;
use crate::error::Errors;
use crate::extract::Body;
use crate::types::Resize;

/// Resizes the balloon of a machine that has one: in its configuration, so that it has this size when it is booted anew, and
/// the guest's if it runs. Processors and memory don't change.
#[utoipa::path(
    put,
    path = "/vm.resize",
    operation_id = "vm.resize",
    request_body = Resize,
    responses((status = 204, description = "The balloon has this size from now on; a guest that runs was asked."), Errors)
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

        server.put("/vm.shutdown", None).await.is(204);
        server.put("/vm.resize", balloon()).await.fails(400, "no balloon");
    }

    #[tokio::test]
    async fn a_size_stays_and_is_told_and_one_that_is_refused_changes_nothing() {
        const RAM: u64 = 64 << 20;
        let server = Server::new();
        let mut events = server.stream("/vm.events").await;
        let mut config: serde_json::Value = serde_json::from_str(&create("/proc/self/exe")).unwrap();
        config["balloon"] = serde_json::json!({ "size": 0 });
        config["memory"]["unmappable"] = false.into();
        config["platform"]["isolation"] = "none".into();
        server.put("/vm.create", Some(config.to_string())).await.is(204);
        let resize = |bytes: u64| server.put("/vm.resize", Some(format!(r#"{{"desired_balloon":{bytes}}}"#)));
        // What the configuration has, and what the guest has given back.
        let is = async |configured: u64, given_back: u64| {
            let info = server.get("/vm.info").await.json();
            assert_eq!(info["config"]["balloon"]["size"], configured);
            assert_eq!(info["memory_actual_size"], RAM - given_back);
        };
        resize(4096).await.is(204);
        is(4096, 0).await;
        resize(RAM).await.fails(400, "ask for less");
        is(4096, 0).await;
        server.put("/vm.boot", None).await.is(204);
        is(4096, 4096).await;
        resize(8 << 20).await.is(204);
        is(8 << 20, 8 << 20).await;
        resize(RAM).await.fails(400, "ask for less");
        server.put("/vm.reboot", None).await.is(204);
        is(8 << 20, 8 << 20).await;
        server.put("/vm.shutdown", None).await.is(204);
        is(8 << 20, 0).await;
        server.close();
        let told = events.end().await;
        assert_eq!(told.iter().filter(|name| **name == "vm.resizing").count(), 2, "{told:?}");
        assert_eq!(told.iter().filter(|name| **name == "vm.resized").count(), 2, "{told:?}");
    }
}
