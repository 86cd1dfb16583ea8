//! `GET /vm.memory-map`

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use hypervisor::{GpaRange, PAGE_SIZE, PageState};
use serde::Deserialize;
use utoipa::IntoParams;
use vmm::memory::GuestRam;
use vmm::memory::guarded::{GpaRun, PageRange};

use super::{Api, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::Query;
use crate::picture::Picture;
use crate::types::{self, MemoryMap, MemoryRun};

/// How many runs there are in an answer that does not say.
const DEFAULT_LIMIT: u32 = 1000;
/// The most runs in an answer.
const MAX_LIMIT: u32 = 10_000;
/// How many runs are looked at for one answer, whatever the filters leave of them.
const MAX_VISITED: usize = 1 << 20;

/// The end of what any guest can address: 52 bits (AMD's manual volume 2, 5.3).
const ADDRESS_SPACE: u64 = 1 << 52;

/// Which part of the map.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only pages with addresses from here on.
    #[param(maximum = 4503599627370496u64)]
    start: Option<u64>,
    /// Only pages with addresses below.
    #[param(maximum = 4503599627370496u64)]
    end: Option<u64>,
    /// Only runs in this state.
    state: Option<types::State>,
    /// At most so many runs; 1000 if it is not said.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<u32>,
}

/// Tells the state of the memory of a machine that runs: runs by address, or a picture of all of it for who accepts
/// image/svg+xml.
#[utoipa::path(
    get,
    path = "/vm.memory-map",
    operation_id = "vm.memory-map",
    params(Filter),
    responses(
        (status = 200, description = "The map.", content((MemoryMap = "application/json"), (String = "image/svg+xml"))),
        Errors
    )
)]
pub async fn memory_map(
    State(api): State<Api>,
    headers: HeaderMap,
    Query(filter): Query<Filter>,
) -> Result<Response, ApiError> {
    let limit = filter.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit: it must be from 1 to {MAX_LIMIT}")));
    }
    if [filter.start, filter.end].into_iter().flatten().any(|address| address > ADDRESS_SPACE) {
        return Err(ApiError::bad_request(format!("start and end: addresses go up to {ADDRESS_SPACE:#x}")));
    }
    let picture = wants_picture(&headers);
    blocking(api, move |api| {
        let guest = api.guest()?;
        Ok(match picture {
            true => svg(Picture::of(guest.memory()).to_string()),
            false => Json(runs(guest.memory(), &filter, limit)).into_response(),
        })
    })
    .await
}

fn svg(picture: String) -> Response {
    ([(header::CONTENT_TYPE, "image/svg+xml")], picture).into_response()
}

/// Whether the client prefers a picture: it names one, before it names JSON.
fn wants_picture(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let kinds = accepted.flat_map(|value| value.split(','));
    let mut kinds = kinds.map(|kind| kind.split(';').next().unwrap_or("").trim());
    let first = kinds.find(|kind| matches!(*kind, "image/svg+xml" | "image/*" | "application/json"));
    first.is_some_and(|kind| kind != "application/json")
}

fn runs(ram: &GuestRam, filter: &Filter, limit: u32) -> MemoryMap {
    let mut map = MemoryMap { runs: vec![], next: None };
    let end = ram.layout().ranges().last().map_or(0, |range| range.gpa.end()).min(filter.end.unwrap_or(u64::MAX));
    let start = filter.start.unwrap_or(0);
    if start >= end {
        return map;
    }
    // All pages that have a part of it.
    let (start, end) = (start - start % PAGE_SIZE, end.next_multiple_of(PAGE_SIZE));
    let Ok(range) = GpaRange::new(start, end - start) else { return map };
    for (visited, run) in ram.devices().map().runs(range).flat_map(|run| pieces(ram, run)).enumerate() {
        if map.runs.len() as u32 >= limit || visited >= MAX_VISITED {
            map.next = Some(run.gpa);
            break;
        }
        if filter.state.is_none_or(|state| state == run.state) {
            map.runs.push(run);
        }
    }
    map
}

/// All of RAM as runs.
pub(crate) fn all_runs(ram: &GuestRam) -> impl Iterator<Item = MemoryRun> {
    let all = ram.layout().ranges().iter().map(|range| range.gpa);
    all.flat_map(move |range| ram.devices().map().runs(range)).flat_map(move |run| pieces(ram, run))
}

/// A run as it is told: cut where the window and tags begin and end.
fn pieces(ram: &GuestRam, run: GpaRun) -> Vec<MemoryRun> {
    let state = match (run.state, run.converting) {
        (PageState::Private, _) => types::State::Private,
        (PageState::Shared, true) => types::State::Converting,
        (PageState::Shared, false) => types::State::Shared,
    };
    let window = ram.layout().window();
    let (start, end) = (run.range.start(), run.range.end());
    // Where a tag begins, or ends.
    let mut cuts = vec![(start, None)];
    if let Some(offset) = ram.devices().table().offset_of(start)
        && let Some(pages) = PageRange::touched(offset, run.range.len())
    {
        for (tagged, tag) in ram.devices().map().plane().sub_states(pages) {
            let from = start + (tagged.offset() - pages.offset());
            cuts.extend([(from, Some(tag.0)), (from + tagged.bytes(), None)]);
        }
    }
    let tag_at = |gpa| cuts.iter().rev().find(|(from, _)| *from <= gpa).and_then(|(_, tag)| *tag);
    let borders = window.iter().flat_map(|window| [window.start(), window.end()]);
    let starts = cuts.iter().map(|(from, _)| *from).chain(borders);
    let mut starts: Vec<u64> = starts.filter(|at| (start..end).contains(at)).collect();
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).copied().chain([end]);
    let piece = |(&gpa, end): (&u64, u64)| MemoryRun {
        gpa,
        size: end - gpa,
        state,
        tag: tag_at(gpa),
        window: window.is_some_and(|window| window.contains(gpa)),
    };
    starts.iter().zip(ends).map(piece).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use crate::testing::{Server, created, running};

    fn bytes(map: &Value) -> u64 {
        map["runs"].as_array().unwrap().iter().map(|run| run["size"].as_u64().unwrap()).sum()
    }

    #[tokio::test]
    async fn runs_are_filtered_and_paged() {
        let server = Server::new();
        server.get("/vm.memory-map").await.fails(404, "create one");
        created(&server).await;
        server.get("/vm.memory-map").await.fails(405, "not booted");
        let server = running().await;
        let window = 48u64 << 20;
        for page in [0, 2, 4] {
            let body = format!(r#"{{"gpa":{},"size":4096,"to":"shared","contents":"discard"}}"#, window + page * 4096);
            server.put("/vm.memory-convert", Some(body)).await.is(200);
        }
        let all = server.get("/vm.memory-map").await.json();
        assert_eq!((bytes(&all), &all["next"]), (64 << 20, &Value::Null));
        let outside: Vec<_> = all["runs"].as_array().unwrap().iter().filter(|run| run["window"] == false).collect();
        assert_eq!(outside.iter().map(|run| run["size"].as_u64().unwrap()).sum::<u64>(), window);
        let shared = server.get("/vm.memory-map?state=shared").await.json();
        assert_eq!((shared["runs"].as_array().unwrap().len(), bytes(&shared)), (3, 3 * 4096));

        let (mut start, mut paged) = (0, vec![]);
        loop {
            let page = server.get(&format!("/vm.memory-map?limit=2&start={start}")).await.json();
            paged.extend(page["runs"].as_array().unwrap().iter().cloned());
            match page["next"].as_u64() {
                Some(next) => start = next,
                None => break,
            }
        }
        assert_eq!(Value::Array(paged), all["runs"]);
        let (start, end) = (window + 4096, window + 3 * 4096);
        let part = server.get(&format!("/vm.memory-map?start={start}&end={end}")).await.json();
        assert_eq!(bytes(&part), 2 * 4096);
        for (start, end, pages) in
            [(1, 4095, 1), (4095, 4097, 2), (4097, 8192, 1), (4096, 8193, 2), (5, 5, 0), (9, 8, 0)]
        {
            let (start, end) = (window + start, window + end);
            let part = server.get(&format!("/vm.memory-map?start={start}&end={end}")).await.json();
            assert_eq!(bytes(&part), pages * 4096, "{start:#x} to {end:#x}");
        }
        let none = server.get("/vm.memory-map?start=4503599627370496").await.json();
        assert_eq!(none["runs"], serde_json::json!([]));
    }

    #[tokio::test]
    async fn bad_queries_are_errors() {
        let server = running().await;
        let bad = [
            ("limit=0", "limit"),
            ("limit=10001", "limit"),
            ("limit=x", "limit"),
            ("start=-1", "start"),
            ("end=4503599627370497", "addresses"),
        ];
        for (query, word) in bad.into_iter().chain([("state=open", "open"), ("colour=red", "colour")]) {
            server.get(&format!("/vm.memory-map?{query}")).await.fails(400, word);
        }
    }

    #[tokio::test]
    async fn a_picture_for_who_asks_for_one() {
        let server = running().await;
        let wishes = [("image/svg+xml", true), ("image/*", true), ("*/*", false)];
        for (accept, picture) in wishes.into_iter().chain([("application/json, image/svg+xml", false)]) {
            let answer = server.get_accepting("/vm.memory-map", accept).await;
            assert_eq!(answer.text().starts_with("<svg"), picture, "{accept}");
        }
    }
}
