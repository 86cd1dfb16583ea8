//! `PUT /vm.remove-device`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::Body;
use crate::types::RemoveDevice;

/// Removes a device: asks the guest that runs to let go of it, and takes it out of the configuration.
#[utoipa::path(
    put,
    path = "/vm.remove-device",
    operation_id = "vm.remove-device",
    request_body = RemoveDevice,
    responses((status = 204, description = "The guest was asked."), Errors)
)]
pub async fn remove_device(State(api): State<Api>, Body(which): Body<RemoveDevice>) -> Result<StatusCode, ApiError> {
    blocking(api, move |api| api.remove_device(&which.id)).await?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created, running};

    #[tokio::test]
    async fn what_is_there_goes_and_what_is_not_is_an_error() {
        let (disk, which) = (r#"{"path":"/tmp/i","id":"d"}"#, r#"{"id":"d"}"#);
        let server = Server::new();
        server.put("/vm.remove-device", Some(which.into())).await.fails(404, "create one");
        created(&server).await;
        for server in [server, running().await] {
            server.put("/vm.remove-device", Some(which.into())).await.fails(404, "no device");
            assert!(server.put("/vm.add-disk", Some(disk.into())).await.status.is_success());
            server.put("/vm.remove-device", Some(which.into())).await.is(204);
            assert!(!server.get("/vm.info").await.text().contains("\"d\""));
            server.put("/vm.remove-device", Some(which.into())).await.fails(404, "no device");
        }
    }

    #[tokio::test]
    async fn that_it_is_gone_is_told_once_by_whoever_knows() {
        // By the machine if it runs, else at once.
        for boots in [false, true] {
            let server = Server::new();
            created(&server).await;
            if boots {
                server.put("/vm.boot", None).await.is(204);
            }
            let mut events = server.stream("/vm.events").await;
            for (body, operation) in [(r#"{"path":"/tmp/i","id":"d"}"#, "add-disk"), (r#"{"id":"d"}"#, "remove-device")]
            {
                assert!(server.put(&format!("/vm.{operation}"), Some(body.into())).await.status.is_success());
            }
            server.put("/vm.remove-device", Some(r#"{"id":"d"}"#.into())).await.fails(404, "no device");
            server.close();
            let told = events.end().await;
            assert_eq!(told[..2], ["vm.device-added", "vm.device-removed"]);
            assert!(!told[2..].contains(&"vm.device-removed"), "{told:?}");
        }
    }

    #[tokio::test]
    async fn names_that_were_made_up_are_names_and_what_is_removed_stays_away() {
        for boots in [false, true] {
            let server = Server::new();
            created(&server).await;
            let devices = [
                ("disk", r#"{"path":"/tmp/i"}"#),
                ("net", "{}"),
                ("vsock", r#"{"cid":3,"socket":"/tmp/v"}"#),
                ("disk", r#"{"path":"/tmp/j","id":"_disk7"}"#),
            ];
            if boots {
                server.put("/vm.boot", None).await.is(204);
            }
            for (kind, device) in devices {
                server.put(&format!("/vm.add-{kind}"), Some(device.into())).await.is(if boots { 200 } else { 204 });
            }
            let taken = r#"{"path":"/tmp/k","id":"_net0"}"#;
            server.put("/vm.add-disk", Some(taken.into())).await.fails(409, "another device");
            if !boots {
                server.put("/vm.boot", None).await.is(204);
            }
            let info = server.get("/vm.info").await.json();
            for id in ["_disk0", "_net0", "_vsock0", "_disk7"] {
                assert!(info["device_tree"][id].is_object(), "{id} in {info:#}");
                server.put("/vm.remove-device", Some(format!(r#"{{"id":"{id}"}}"#))).await.is(204);
            }
            server.put("/vm.reboot", None).await.is(204);
            let info = server.get("/vm.info").await;
            for id in ["_disk0", "_net0", "_vsock0", "_disk7"] {
                assert!(!info.text().contains(id), "{id} in {}", info.text());
            }
            assert!(info.text().contains("_rng0"));
            server.put("/vm.remove-device", Some(r#"{"id":"_rng0"}"#.into())).await.fails(400, "can't be removed");
        }
    }
}
