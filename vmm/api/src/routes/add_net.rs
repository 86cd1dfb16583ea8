//! `PUT /vm.add-net`

use axum::extract::State;
use axum::response::Response;

use super::{Api, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::Body;
use crate::types::{NetConfig, PciDeviceInfo};

/// Adds a network device to the machine: at once if it runs, else when it is booted.
#[utoipa::path(
    put,
    path = "/vm.add-net",
    operation_id = "vm.add-net",
    request_body = NetConfig,
    responses(
        (status = 200, description = "It was added to the machine that runs.", body = PciDeviceInfo),
        (status = 204, description = "The machine will have it when it is booted."),
        Errors
    )
)]
pub async fn add_net(State(api): State<Api>, Body(config): Body<NetConfig>) -> Result<Response, ApiError> {
    blocking(api, |api| api.add_net(config)).await.map(super::add_disk::answer)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created, running};

    #[tokio::test]
    async fn the_hardware_address_is_made_up_once() {
        let server = running().await;
        server.put("/vm.add-net", Some("{}".into())).await.is(200);
        let mac = server.get("/vm.info").await.json()["config"]["net"][0]["mac"].clone();
        assert!(mac.is_string(), "{mac}");
        server.put("/vm.reboot", None).await.is(204);
        assert_eq!(server.get("/vm.info").await.json()["config"]["net"][0]["mac"], mac);
    }

    #[tokio::test]
    async fn added_now_or_at_boot_and_shown() {
        let device = r#"{"tap":"tap0","id":"added-one"}"#;
        let server = Server::new();
        server.put("/vm.add-net", Some(device.into())).await.fails(404, "create one");
        created(&server).await;
        server.put("/vm.add-net", Some(device.into())).await.is(204);
        assert!(server.get("/vm.info").await.text().contains("added-one"));
        server.put("/vm.add-net", Some(device.into())).await.fails(409, "already");
        server.put("/vm.add-net", Some(r#"{"tap":"tap0","mac":"13:00:00:00:00:00"}"#.into())).await.fails(400, "mac");

        let server = running().await;
        let added = server.put("/vm.add-net", Some(device.into())).await.json();
        assert_eq!(added["id"], "added-one");
        let info = server.get("/vm.info").await.json();
        assert_eq!(info["device_tree"]["added-one"]["pci_bdf"], added["bdf"]);
        server.put("/vm.add-net", Some(device.into())).await.fails(409, "already");
    }
}
