//! `PUT /vm.reboot`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::NoBody;

/// Resets the machine, and answers when it has been built anew.
#[utoipa::path(
    put,
    path = "/vm.reboot",
    operation_id = "vm.reboot",
    responses((status = 204, description = "It runs anew."), Errors)
)]
pub async fn reboot(State(api): State<Api>, _: NoBody) -> Result<StatusCode, ApiError> {
    blocking(api, |api| api.reboot()).await?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::testing::{Server, created, running};

    #[tokio::test]
    async fn builds_the_machine_anew() {
        let server = Server::new();
        server.put("/vm.reboot", None).await.fails(404, "create one");
        created(&server).await;
        server.put("/vm.reboot", None).await.fails(405, "not booted");
        let server = running().await;
        let convert = format!("{{\"gpa\":{},\"size\":4096,\"to\":\"shared\",\"contents\":\"discard\"}}", 48 << 20);
        server.put("/vm.memory-convert", Some(convert)).await.is(200);
        assert_eq!(server.get("/vm.memory-stats").await.json()["shared_bytes"], 4096);
        server.put("/vm.reboot", None).await.is(204);
        assert_eq!(server.get("/vm.info").await.json()["state"], "Running");
        assert_eq!(server.get("/vm.memory-stats").await.json()["shared_bytes"], 0, "nothing of the old guest is left");
    }

    #[tokio::test]
    async fn what_can_not_be_built_anew_is_told_and_ends_the_process_unless_it_is_to_stay() {
        for keep in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let kernel = folder.path().join("kernel");
            std::fs::write(&kernel, "kernel").unwrap();
            let server = Server::with(keep);
            let mut events = server.stream("/vm.events").await;
            server.put("/vm.create", Some(crate::testing::create(kernel.to_str().unwrap()))).await.is(204);
            server.put("/vm.boot", None).await.is(204);
            std::fs::remove_file(&kernel).unwrap();
            let answer = server.put("/vm.reboot", None).await;
            answer.fails(400, "not built anew");
            answer.fails(400, kernel.to_str().unwrap());
            events.until("event: vm.reboot-failed\n").await;
            assert_eq!(server.get("/vm.info").await.json()["state"], "Shutdown");
            let ended = server.ended.recv_timeout(Duration::from_secs(if keep { 0 } else { 60 }));
            assert_eq!(ended.is_ok(), !keep);
            if keep {
                std::fs::write(&kernel, "kernel").unwrap();
                server.put("/vm.boot", None).await.is(204);
            }
        }
    }
}
