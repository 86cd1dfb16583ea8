//! `PUT /vm.add-disk`

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::Body;
use crate::types::{DiskConfig, PciDeviceInfo};

/// Adds a disk to the machine: at once if it runs, else when it is booted.
#[utoipa::path(
    put,
    path = "/vm.add-disk",
    operation_id = "vm.add-disk",
    request_body = DiskConfig,
    responses(
        (status = 200, description = "It was added to the machine that runs.", body = PciDeviceInfo),
        (status = 204, description = "The machine will have it when it is booted."),
        Errors
    )
)]
pub async fn add_disk(State(api): State<Api>, Body(config): Body<DiskConfig>) -> Result<Response, ApiError> {
    blocking(api, |api| api.add_disk(config)).await.map(answer)
}

/// Where a device is, if it is anywhere yet.
pub(super) fn answer(added: Option<PciDeviceInfo>) -> Response {
    added.map_or_else(|| DONE.into_response(), |device| Json(device).into_response())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created, running};

    #[tokio::test]
    async fn added_now_or_at_boot_and_shown() {
        let device = r#"{"path":"/tmp/image","id":"added-one"}"#;
        let server = Server::new();
        server.put("/vm.add-disk", Some(device.into())).await.fails(404, "create one");
        created(&server).await;
        server.put("/vm.add-disk", Some(device.into())).await.is(204);
        assert!(server.get("/vm.info").await.text().contains("added-one"));
        server.put("/vm.add-disk", Some(device.into())).await.fails(409, "already");
        server
            .put("/vm.add-disk", Some(r#"{"path":"/tmp/image","vhost_user":true}"#.into()))
            .await
            .fails(400, "vhost_user");

        let server = running().await;
        let added = server.put("/vm.add-disk", Some(device.into())).await.json();
        assert_eq!(added["id"], "added-one");
        let info = server.get("/vm.info").await.json();
        assert_eq!(info["device_tree"]["added-one"]["pci_bdf"], added["bdf"]);
        server.put("/vm.add-disk", Some(device.into())).await.fails(409, "already");
    }
}
