//! An in-process server on the model, for the tests of handlers.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::{Router, body::Bytes};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use vmm::events::EventMonitor;

use crate::model::ModelHost;
use crate::{Controller, ROOT, Settings};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The server, and what says that the process is to end.
pub struct Server {
    controller: Arc<Controller>,
    service: Router,
    pub ended: mpsc::Receiver<crate::controller::End>,
}

/// An answer.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Bytes,
}

/// A body that does not end.
pub struct Stream {
    body: Body,
    seen: String,
}

impl Server {
    pub fn new() -> Self {
        Self::with(false)
    }

    pub fn with(keep: bool) -> Self {
        let host = Arc::new(ModelHost::default());
        let (controller, ended) = Controller::new(host, Arc::new(EventMonitor::new()), Settings { keep });
        let service = crate::document::service(controller.clone());
        Self { controller, service, ended }
    }

    async fn send(&self, request: axum::http::request::Builder, body: Body) -> axum::response::Response {
        self.service.clone().oneshot(request.body(body).unwrap()).await.unwrap()
    }

    pub async fn put(&self, path: &str, body: Option<String>) -> Answer {
        let request = Request::put(format!("{ROOT}{path}"));
        Answer::of(self.send(request, body.map_or_else(Body::empty, Body::from)).await).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.get_accepting(path, "*/*").await
    }

    pub async fn get_accepting(&self, path: &str, accept: &str) -> Answer {
        let request = Request::get(format!("{ROOT}{path}")).header(header::ACCEPT, accept);
        Answer::of(self.send(request, Body::empty()).await).await
    }

    pub async fn stream(&self, path: &str) -> Stream {
        let answer = self.send(Request::get(format!("{ROOT}{path}")), Body::empty()).await;
        assert_eq!(answer.status(), 200);
        Stream { body: answer.into_body(), seen: String::new() }
    }

    pub fn close(&self) {
        self.controller.close();
    }
}

impl Answer {
    async fn of(response: axum::response::Response) -> Self {
        let (parts, body) = response.into_parts();
        Self { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn is(&self, status: u16) {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(status == 204, self.body.is_empty(), "a body where one belongs");
    }

    /// It is an error in Cloud Hypervisor's form that has this in it.
    pub fn fails(&self, status: u16, words: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        let chain: Vec<String> = serde_json::from_slice(&self.body).unwrap();
        assert!(chain.iter().any(|message| message.contains(words)), "{words:?} in {chain:?}");
    }
}

impl Stream {
    /// Reads on; returns whether there was more.
    async fn more(&mut self) -> bool {
        let frame = tokio::time::timeout(LIMIT, self.body.frame()).await.unwrap();
        frame.is_some_and(|frame| {
            self.seen += std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap();
            true
        })
    }

    pub async fn until(&mut self, words: &str) {
        while !self.seen.contains(words) {
            assert!(self.more().await, "it ends without {words:?}: {}", self.seen);
        }
    }

    /// Reads it to its end; returns the names of all its events but those of memory, of which some come by the clock.
    pub async fn end(&mut self) -> Vec<&str> {
        while self.more().await {}
        let names = self.seen.lines().filter_map(|line| line.strip_prefix("event: "));
        names.filter(|name| !name.starts_with("memory.")).collect()
    }
}

/// A machine of 64 MiB, all of it unmappable, with a window of 16 MiB.
pub fn create(kernel: &str) -> String {
    json!({
        "payload": { "kernel": kernel, "cmdline": "console=ttyS0" },
        "memory": { "size": 64 << 20, "unmappable": true, "window": 16 << 20 },
        "platform": { "isolation": "software" },
    })
    .to_string()
}

/// Creates a machine that can be booted, and returns its configuration.
pub async fn created(server: &Server) -> Value {
    let config = create("/proc/self/exe");
    server.put("/vm.create", Some(config.clone())).await.is(204);
    serde_json::from_str(&config).unwrap()
}

/// A server with a machine that runs.
pub async fn running() -> Server {
    let server = Server::new();
    created(&server).await;
    server.put("/vm.boot", None).await.is(204);
    server
}
