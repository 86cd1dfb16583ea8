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
}
