//! `PUT /vmm.shutdown`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE};
use crate::error::Errors;
use crate::extract::NoBody;

/// Ends the machine, if there is one, and then the process.
#[utoipa::path(
    put,
    path = "/vmm.shutdown",
    operation_id = "vmm.shutdown",
    responses((status = 204, description = "The process is ending."), Errors)
)]
pub async fn vmm_shutdown(State(api): State<Api>, _: NoBody) -> StatusCode {
    // Here, and not where other requests may wait.
    api.end();
    DONE
}

#[cfg(test)]
mod tests {
    use crate::testing::Server;

    #[tokio::test]
    async fn the_process_is_to_end() {
        let server = Server::new();
        assert!(server.ended.try_recv().is_err());
        server.put("/vmm.shutdown", None).await.is(204);
        assert!(server.ended.recv().unwrap().is_ok());
    }
}
