//! `PUT /vm.add-vsock`

use axum::extract::State;
use axum::response::Response;

use super::{Api, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::Body;
use crate::types::{PciDeviceInfo, VsockConfig};

/// Adds the socket device to the machine: at once if it runs, else when it is booted.
#[utoipa::path(
    put,
    path = "/vm.add-vsock",
    operation_id = "vm.add-vsock",
    request_body = VsockConfig,
    responses(
        (status = 200, description = "It was added to the machine that runs.", body = PciDeviceInfo),
        (status = 204, description = "The machine will have it when it is booted."),
        Errors
    )
)]
pub async fn add_vsock(State(api): State<Api>, Body(config): Body<VsockConfig>) -> Result<Response, ApiError> {
    blocking(api, |api| api.add_vsock(config)).await.map(super::add_disk::answer)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created, running};

    #[tokio::test]
    async fn added_now_or_at_boot_and_shown() {
        let device = r#"{"cid":3,"socket":"/tmp/vsock","id":"added-one"}"#;
        let server = Server::new();
        server.put("/vm.add-vsock", Some(device.into())).await.fails(404, "create one");
        created(&server).await;
        server.put("/vm.add-vsock", Some(device.into())).await.is(204);
        assert!(server.get("/vm.info").await.text().contains("added-one"));
        server.put("/vm.add-vsock", Some(device.into())).await.fails(409, "already");
        server.put("/vm.add-vsock", Some(r#"{"cid":2,"socket":"/tmp/vsock"}"#.into())).await.fails(400, "cid");

        let server = running().await;
        let added = server.put("/vm.add-vsock", Some(device.into())).await.json();
        assert_eq!(added["id"], "added-one");
        let info = server.get("/vm.info").await.json();
        assert_eq!(info["device_tree"]["added-one"]["pci_bdf"], added["bdf"]);
        server.put("/vm.add-vsock", Some(device.into())).await.fails(409, "already");
    }
}
