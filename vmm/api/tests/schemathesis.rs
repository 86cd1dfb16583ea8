//! Schemathesis (from PyPI) against a server on the model: thousands of requests that follow the document, and thousands that
//! don't. None may be answered with 5xx, with a status or a body that the document does not have, or with success where the
//! request breaks the schema.
//!
//! It runs where there is a `schemathesis`: the program that SCHEMATHESIS names, or one in PATH; elsewhere it says that it
//! does not. `SCHEMATHESIS=required` makes that a failure. The answer of vm.events has no end, so what carries it to
//! schemathesis ends it, once nothing has come for a moment.

#![expect(clippy::unwrap_used, reason = "what helpers of a test can't do fails it")]

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use umbra_api::model::ModelHost;
use umbra_api::server::Server;
use umbra_api::types::VmState;
use umbra_api::{Controller, Settings};
use vmm::events::EventMonitor;

/// A machine with all that the API can look into.
const MACHINE: &str = r#"{
    "payload": { "kernel": "/proc/self/exe" },
    "memory": { "size": 67108864, "unmappable": true, "window": 16777216 },
    "balloon": { "size": 0 }
}"#;

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
    response_schema_conformance,negative_data_rejection,unsupported_method";

fn program() -> Option<PathBuf> {
    match std::env::var("SCHEMATHESIS") {
        Ok(path) if !path.is_empty() && path != "required" => return Some(path.into()),
        _ => {}
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|folder| folder.join("schemathesis")).find(|path| path.is_file())
}

/// Carries connections to a port of this machine to the socket: schemathesis knows no unix sockets.
fn carry(socket: &Path) -> io::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let socket = socket.to_owned();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = UnixStream::connect(&socket) else { continue };
            let both = || Ok::<_, io::Error>((client.try_clone()?, server.try_clone()?));
            let Ok((client_again, server_again)) = both() else { continue };
            thread::spawn(move || to_server(client, server));
            thread::spawn(move || to_client(server_again, client_again));
        }
    });
    Ok(port)
}

fn to_server(mut from: TcpStream, mut to: UnixStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

fn to_client(mut from: UnixStream, mut to: TcpStream) {
    if let Ok(true) = pass_until_events(&mut from, &mut to) {
        let _ = pass_events(&mut from, &mut to);
    } else {
        let _ = io::copy(&mut from, &mut to);
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Carries what comes, until the head of an answer says that events follow. Whether one did.
fn pass_until_events(from: &mut UnixStream, to: &mut TcpStream) -> io::Result<bool> {
    let mut buffer = [0; 64 << 10];
    loop {
        let size = from.read(&mut buffer)?;
        if size == 0 {
            return Ok(false);
        }
        to.write_all(&buffer[..size])?;
        // The server writes a head at once, and bodies have no such line.
        if String::from_utf8_lossy(&buffer[..size])
            .to_ascii_lowercase()
            .contains("\r\ncontent-type: text/event-stream\r\n")
        {
            return Ok(true);
        }
    }
}

/// How many answers with events were ended.
static ENDED: AtomicUsize = AtomicUsize::new(0);

/// Carries events until none has come for a moment, and ends the body with its last chunk.
fn pass_events(from: &mut UnixStream, to: &mut TcpStream) -> io::Result<()> {
    from.set_read_timeout(Some(Duration::from_millis(100)))?;
    match io::copy(from, to) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            ENDED.fetch_add(1, Ordering::Relaxed);
            to.write_all(b"0\r\n\r\n")
        }
        result => result.map(drop),
    }
}

/// Creates and boots the machine again and again, so that requests find one that runs.
fn keep_running(controller: &Arc<Controller>) -> Arc<AtomicBool> {
    let goes_on = Arc::new(AtomicBool::new(true));
    let (controller, flag) = (controller.clone(), goes_on.clone());
    thread::spawn(move || {
        while flag.load(Ordering::Relaxed) {
            match controller.state() {
                None => drop(controller.create(serde_json::from_str(MACHINE).unwrap())),
                Some(VmState::Created | VmState::Shutdown) => drop(controller.boot(|| Ok::<_, Infallible>(()))),
                Some(VmState::Running | VmState::Paused) => thread::sleep(Duration::from_millis(5)),
            }
        }
    });
    goes_on
}

#[test]
fn no_request_breaks_the_document() {
    let Some(program) = program() else {
        assert!(std::env::var("SCHEMATHESIS").is_err(), "there is no schemathesis: pip install schemathesis");
        eprintln!("skipped: there is no schemathesis (pip install schemathesis)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api");
    let host = Arc::new(ModelHost::default());
    let (controller, _ended) = Controller::new(host, Arc::new(EventMonitor::new()), Settings { keep: true });
    let server = Server::start(&socket, controller.clone()).unwrap();
    let kept = keep_running(&controller);
    let url = format!("http://127.0.0.1:{}/api/v1", carry(&socket).unwrap());

    let mut command = Command::new(program);
    command.current_dir(folder.path()).args(["run", &format!("{url}/openapi.json"), "--url", &url]);
    command.args(["--checks", CHECKS, "--max-examples", "25", "--seed", "1"]);
    command.args(["--mode", "all", "--phases", "examples,coverage,fuzzing", "--no-color", "--request-timeout", "60"]);
    command.args(["--suppress-health-check", "all", "--generation-database", "none"]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    kept.store(false, Ordering::Relaxed);
    server.end();
    controller.close();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_ne!(ENDED.load(Ordering::Relaxed), 0, "no events were asked for: {text}");
    println!("{text}");
}
