//! `GET /vm.info`

use axum::Json;
use axum::extract::State;

use super::{Api, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::types::VmInfo;

/// Tells of the machine: its configuration, where it is in its life, what makes its memory unmappable, its devices.
#[utoipa::path(
    get,
    path = "/vm.info",
    operation_id = "vm.info",
    responses((status = 200, description = "The machine.", body = VmInfo), Errors)
)]
pub async fn info(State(api): State<Api>) -> Result<Json<VmInfo>, ApiError> {
    blocking(api, |api| api.info()).await.map(Json)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{Server, create, created};

    #[tokio::test]
    async fn shows_the_configuration_as_it_was_given() {
        let server = Server::new();
        server.get("/vm.info").await.fails(404, "there is no machine");
        let given = created(&server).await;
        let info = server.get("/vm.info").await.json();
        assert_eq!(info["config"], given);
        assert_eq!(info["memory_actual_size"], 64 << 20);
    }

    #[tokio::test]
    async fn tells_what_a_choice_that_was_left_open_became() {
        for (unmappable, isolation) in [(true, "software"), (false, "none")] {
            let server = Server::new();
            let mut config: Value = serde_json::from_str(&create("/proc/self/exe")).unwrap();
            config["platform"] = json!({ "isolation": "auto" });
            config["memory"]["unmappable"] = unmappable.into();
            server.put("/vm.create", Some(config.to_string())).await.is(204);
            assert_eq!(server.get("/vm.info").await.json()["isolation"], Value::Null);
            server.put("/vm.boot", None).await.is(204);
            let info = server.get("/vm.info").await.json();
            assert_eq!(info["isolation"], isolation);
            assert_eq!(info["config"], config, "what was asked for stays");
            server.put("/vm.shutdown", None).await.is(204);
            assert_eq!(server.get("/vm.info").await.json()["isolation"], Value::Null);
        }
    }
}
