//! `PUT /vm.memory-convert`

use arch::x86_64::private_faults::{ConversionRequest, Origin};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use hypervisor::{GpaRange, PAGE_SIZE, PageState};
use vmm::memory::GuestRam;

use super::{Api, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::Body;
use crate::types::{self, ConversionAnswer, Fate};

/// Converts memory of the window that the machine reserves (`memory.window`). RAM in the guest's use is refused: its
/// contents would be lost behind its back.
#[utoipa::path(
    put,
    path = "/vm.memory-convert",
    operation_id = "vm.memory-convert",
    request_body = types::ConversionRequest,
    responses((status = 200, description = "It has the state now.", body = ConversionAnswer), Errors)
)]
pub async fn memory_convert(
    State(api): State<Api>,
    Body(request): Body<types::ConversionRequest>,
) -> Result<Json<ConversionAnswer>, ApiError> {
    let room = api.conversion()?;
    blocking(api, move |api| {
        let _room = room;
        convert(api.guest()?.memory(), request)
    })
    .await
    .map(Json)
}

fn convert(ram: &GuestRam, request: types::ConversionRequest) -> Result<ConversionAnswer, ApiError> {
    let to = match request.to {
        types::State::Shared => PageState::Shared,
        types::State::Private => PageState::Private,
        types::State::Converting => {
            return Err(ApiError::bad_request("to: nothing stays converting: choose shared or private"));
        }
    };
    let aligned = request.gpa.is_multiple_of(PAGE_SIZE) && request.size.is_multiple_of(PAGE_SIZE);
    let range = GpaRange::new(request.gpa, request.size).ok().filter(|_| aligned);
    let range = range.ok_or_else(|| {
        ApiError::bad_request(format!("gpa and size: they must be whole pages of {PAGE_SIZE} bytes, at least one"))
    })?;
    let conflict = |message: String| ApiError::new(StatusCode::CONFLICT, message);
    let window = ram.layout().window().ok_or_else(|| {
        conflict("this machine reserves nothing to convert: create it with memory.window, such as 16777216".into())
    })?;
    if window.intersection(range) != Some(range) {
        let rest = "the rest of RAM is in the guest's use, and only the guest converts it";
        return Err(conflict(format!("{range} is not all in the window {window}: {rest}")));
    }
    if !ram.layout().converts() {
        let remedy = "create it with an isolation other than none";
        return Err(conflict(format!("this machine's memory is all shared, for good: {remedy}")));
    }
    let runs = ram.devices().map().runs(range).filter(|run| run.state != to);
    let changed_bytes = runs.map(|run| run.range.len()).sum();
    let changed = ram.convert(ConversionRequest::new(range, to, Origin::Host));
    let changed = changed.map_err(|error| ApiError::from_conversion(&error))?;
    Ok(ConversionAnswer {
        gpa: request.gpa,
        size: request.size,
        state: request.to,
        changed_bytes: if changed { changed_bytes } else { 0 },
        contents: if changed { Fate::Discarded } else { Fate::Kept },
    })
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use crate::testing::{Server, created, running};

    fn request(gpa: u64, size: u64, to: &str) -> Option<String> {
        Some(format!(r#"{{"gpa":{gpa},"size":{size},"to":"{to}","contents":"discard"}}"#))
    }

    #[tokio::test]
    async fn there_and_back_and_told_what_became_of_the_contents() {
        let server = running().await;
        let window = 48 << 20;
        let answer = server.put("/vm.memory-convert", request(window, 8192, "shared")).await.json();
        assert_eq!((&answer["contents"], &answer["changed_bytes"]), (&"discarded".into(), &8192.into()));
        let answer = server.put("/vm.memory-convert", request(window, 8192, "shared")).await.json();
        assert_eq!((&answer["contents"], &answer["changed_bytes"]), (&"kept".into(), &0.into()));
        assert_eq!(server.get("/vm.memory-stats").await.json()["shared_bytes"], 8192);
        let answer = server.put("/vm.memory-convert", request(window, 16384, "private")).await.json();
        assert_eq!((&answer["contents"], &answer["changed_bytes"]), (&"discarded".into(), &8192.into()));
        assert_eq!(server.get("/vm.memory-stats").await.json()["shared_bytes"], 0);
    }

    #[tokio::test]
    async fn conversions_that_wait_hold_up_nobody_and_follow_the_policy() {
        let server = running().await;
        server.put("/vm.memory-policy", Some(r#"{"host":"1/s"}"#.into())).await.is(200);
        let gpa = |page: u64| (48 << 20) + page * 4096;
        server.put("/vm.memory-convert", request(gpa(0), 4096, "shared")).await.is(200);
        // More than a pool of threads has, each with a turn that is later than the one before.
        let mut waiting: Vec<_> = (1..40)
            .map(|page| Box::pin(server.put("/vm.memory-convert", request(gpa(page), 4096, "shared"))))
            .collect();
        let mut refused = 0;
        for answer in &mut waiting {
            let polled = std::future::poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await;
            if let Poll::Ready(answer) = polled {
                answer.fails(429, "under way already");
                refused += 1;
            }
        }
        assert_eq!(refused, 39 - 4);
        waiting.truncate(4);
        server.put("/vmm.shutdown", None).await.is(204);
        server.put("/vm.memory-policy", Some(r#"{"host":"refuse"}"#.into())).await.is(200);
        for answer in waiting {
            let answer = answer.await;
            assert!(matches!(answer.status.as_u16(), 200 | 403), "{}", answer.text());
        }
        server.put("/vm.memory-policy", Some(r#"{"host":"allow"}"#.into())).await.is(200);
        server.put("/vm.memory-convert", request(gpa(50), 4096, "shared")).await.is(200);
    }

    #[test]
    fn a_paused_machine_is_told_as_such() {
        let error = crate::ApiError::from_conversion(&vmm::memory::ConversionError::Interrupted);
        assert_eq!(error.status, 409);
        assert!(error.chain[1].contains("vm.resume"), "{error:?}");
    }

    #[tokio::test]
    async fn what_is_not_in_the_window_is_refused_and_stays() {
        let server = Server::new();
        server.put("/vm.memory-convert", request(0, 4096, "shared")).await.fails(404, "create one");
        created(&server).await;
        server.put("/vm.memory-convert", request(0, 4096, "shared")).await.fails(405, "not booted");
        let server = running().await;
        let window: u64 = 48 << 20;
        for gpa in [0, window - 4096, 64 << 20, 1 << 40] {
            server.put("/vm.memory-convert", request(gpa, 4096, "shared")).await.fails(409, "not all in the window");
        }
        server.put("/vm.memory-convert", request(window - 4096, 8192, "shared")).await.fails(409, "not all in the");
        for (gpa, size) in [(window, 0), (window + 1, 4096), (window, 100), (u64::MAX - 4095, 8192)] {
            server.put("/vm.memory-convert", request(gpa, size, "shared")).await.fails(400, "whole pages");
        }
        server.put("/vm.memory-convert", request(window, 4096, "converting")).await.fails(400, "to:");
        let no_consent = format!(r#"{{"gpa":{window},"size":4096,"to":"shared"}}"#);
        server.put("/vm.memory-convert", Some(no_consent)).await.fails(400, "contents");
        let an_object = format!(r#"{{"gpa":{window},"size":4096,"to":{{"shared":null}},"contents":"discard"}}"#);
        server.put("/vm.memory-convert", Some(an_object)).await.fails(400, "at to: there is an object where a string");
        assert_eq!(server.get("/vm.memory-stats").await.json()["shared_bytes"], 0);
    }
}
