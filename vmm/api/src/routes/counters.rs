//! `GET /vm.counters`

use axum::Json;
use axum::extract::State;

use super::{Api, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::types::Counters;

/// Tells what the devices of a machine that runs count, by device and counter.
#[utoipa::path(
    get,
    path = "/vm.counters",
    operation_id = "vm.counters",
    responses((status = 200, description = "The counters.", body = inline(Counters)), Errors)
)]
pub async fn counters(State(api): State<Api>) -> Result<Json<Counters>, ApiError> {
    blocking(api, |api| Ok(api.guest()?.counters())).await.map(Json)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, running};

    #[tokio::test]
    async fn each_device_has_its_own() {
        Server::new().get("/vm.counters").await.fails(404, "create one");
        let server = running().await;
        assert_eq!(server.get("/vm.counters").await.json(), serde_json::json!({ "_rng0": { "requests": 0 } }));
        server.put("/vm.add-disk", Some(r#"{"path":"/tmp/i","id":"d"}"#.into())).await.is(200);
        assert_eq!(server.get("/vm.counters").await.json()["d"]["requests"], 0);
    }
}
