use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as Blocking;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::api::{
    Because, Check, CheckAnswer, Draft, Forgotten, NeighbourList, NeighbourView, Neighbours, PolicyView, Posture, ReceiptStatus,
    ReceiptView, Receipts, RegisterAnswer, Released, Reloaded, Revoked, ServerView, Sessions, StartSession, Started, StateAccepted, Status,
    SwitchOff, Switched,
};
use crate::control::client::{Answer, Client, ClientError};
use crate::control::counters::ControlCounters;
use crate::control::trust::Named;
use crate::control::{ApiError, Caller};
use crate::events::hub::Hub;
use crate::events::store::Store;
use crate::events::{Body, Event, PolicyChange};
use crate::receipt::Request;

struct Fake {
    hub: Hub,
    counters: ControlCounters,
    marked: AtomicBool,
    unreadable: AtomicBool,
}

impl Governor for Fake {
    fn session_of(&self, _pid: u32) -> Result<Option<u64>, ApiError> {
        if self.unreadable.load(Ordering::Relaxed) {
            return Err(ApiError::Internal("unreadable".into()));
        }
        Ok(self.marked.load(Ordering::Relaxed).then_some(0xabc))
    }
    fn operators(&self) -> Option<u32> {
        None
    }
    fn hub(&self) -> &Hub {
        &self.hub
    }
    fn counters(&self) -> &ControlCounters {
        &self.counters
    }
    fn status(&self) -> Result<Status, ApiError> {
        let learned = vec![NeighbourView { address: "10.0.0.9".into(), ..NeighbourView::default() }];
        let neighbours = Neighbours::List(NeighbourList { learned, ..NeighbourList::default() });
        Ok(Status { posture: Posture::Enforcing, neighbours, ..Status::default() })
    }
    fn metrics(&self) -> Result<String, ApiError> {
        Ok("pp 1\n".into())
    }
    fn sessions(&self, _owner: Option<u32>) -> Result<Sessions, ApiError> {
        Ok(Sessions::default())
    }
    fn start_session(&self, caller: &Caller, start: &StartSession) -> Result<Started, ApiError> {
        Ok(Started { pid: start.pid.unwrap_or(caller.pid), ..Started::default() })
    }
    fn release(&self, _session: u64) -> Result<Released, ApiError> {
        Err(ApiError::not_found("session: none"))
    }
    fn register(&self, artifact: &[u8]) -> Result<RegisterAnswer, ApiError> {
        Ok(ReceiptView { id: artifact.len().to_string(), ..ReceiptView::default() }.into())
    }
    fn receipts(&self) -> Result<Receipts, ApiError> {
        Ok(Receipts::default())
    }
    fn receipt(&self, _id: &str) -> Result<ReceiptView, ApiError> {
        Ok(ReceiptView::default())
    }
    fn revoke(&self, id: &str, _reason: &str) -> Result<Revoked, ApiError> {
        Ok(Revoked { id: id.to_owned(), status: ReceiptStatus::Revoked, was_registered: false })
    }
    fn accept_state(&self, _caller: &Caller, _because: &Because) -> Result<StateAccepted, ApiError> {
        Err(ApiError::bad_request("state: it is the newest"))
    }
    fn switch_off(&self, _caller: &Caller, _asked: &SwitchOff) -> Result<Switched, ApiError> {
        Ok(Switched::default())
    }
    fn switch_on(&self, _caller: &Caller) -> Result<Switched, ApiError> {
        Ok(Switched::default())
    }
    fn check(&self, _caller: &Caller, _check: &Check) -> Result<CheckAnswer, ApiError> {
        panic!("a bug in a call")
    }
    fn server_behind(&self, _caller: &Caller, _event: &Event) -> Option<ServerView> {
        None
    }
    fn draft(&self, _caller: &Caller, _draft: &Draft) -> Result<Request, ApiError> {
        Err(ApiError::NotConfigured("tenant"))
    }
    fn policy(&self) -> PolicyView {
        PolicyView::default()
    }
    fn neighbours(&self) -> NeighbourList {
        NeighbourList::default()
    }
    fn forget_neighbour(&self, address: &str) -> Result<Forgotten, ApiError> {
        Ok(Forgotten { address: address.to_owned(), forgotten: 1 })
    }
    fn reload(&self) -> Result<Reloaded, ApiError> {
        Ok(Reloaded::default())
    }
}

struct World {
    fake: Arc<Fake>,
    client: Client,
    path: PathBuf,
    _stop: watch::Sender<bool>,
    _dir: tempfile::TempDir,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/control.sock");
    let store = Store::open(&dir.path().join("events.redb"), "boot");
    let fake = Arc::new(Fake {
        hub: Hub::new(store, "h"),
        counters: ControlCounters::default(),
        marked: AtomicBool::new(false),
        unreadable: AtomicBool::new(false),
    });
    let (stop, stopping) = watch::channel(false);
    let governor: Arc<dyn Governor> = fake.clone();
    tokio::spawn(serve(bind(&path).unwrap().listen().unwrap(), governor, stopping));
    World { fake, client: Client::new(&path, Named::OnCommandLine), path, _stop: stop, _dir: dir }
}

fn code(result: Result<Answer<Value>, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Refused(error)) => (error.status, error.code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_answer_and_unknown_ones_say_so() {
    let world = world();
    assert_eq!(world.client.get::<Value>("/v1/status").await.unwrap()["posture"], "enforcing");
    assert_eq!(world.client.get::<Value>("/v1/self").await.unwrap()["marked"], false);
    assert_eq!(code(world.client.get::<Value>("/v1/nothing").await).0, 404);
    assert_eq!(code(world.client.delete::<Value>("/v1/status").await).0, 405);
    assert_eq!(code(world.client.get::<Value>("/v1/events?since=yesterday").await).0, 400);
    assert_eq!(code(world.client.get::<Value>("/v1/events?colour=red").await).0, 400);
    assert_eq!(code(world.client.delete::<Value>("/v1/sessions/xyz").await).0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn marked_peer_and_one_of_unreadable_mark_may_not_revoke_or_check() {
    let world = world();
    assert!(world.client.delete::<Value>("/v1/receipts/r1").await.is_ok());
    for switch in [&world.fake.marked, &world.fake.unreadable] {
        switch.store(true, Ordering::Relaxed);
        assert_eq!(code(world.client.delete::<Value>("/v1/receipts/r1").await), (403, "no_rights".into()));
        assert_eq!(code(world.client.post::<Value>("/v1/check", &json!({})).await), (403, "no_rights".into()));
        assert_eq!(code(world.client.get::<Value>("/v1/events").await), (403, "no_rights".into()));
        assert_eq!(code(world.client.get::<Value>("/v1/status").await), (403, "no_rights".into()));
        assert!(world.client.post::<Value>("/v1/receipts", &json!({})).await.is_ok());
        assert!(world.client.get::<Value>("/v1/why").await.is_ok());
        switch.store(false, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_the_plant_are_for_operators_alone() {
    let world = world();
    let all = world.client.get::<Status>("/v1/status").await.unwrap();
    // Tests are run by an operator only if they run as root.
    match (&all.neighbours, nix::unistd::getuid().is_root()) {
        (Neighbours::List(list), true) => assert_eq!(list.learned[0].address, "10.0.0.9"),
        (Neighbours::Counts(counts), false) => assert_eq!(counts.learned, 1),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_checked_again_for_each_request_of_a_connection() {
    let world = world();
    let fake = Arc::clone(&world.fake);
    let path = world.path.clone();
    tokio::task::spawn_blocking(move || {
        let mut stream = Blocking::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut ask = || {
            stream.write_all(b"GET /v1/receipts HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            let mut answer = [0u8; 4096];
            let length = stream.read(&mut answer).unwrap();
            String::from_utf8_lossy(&answer[..length]).into_owned()
        };
        assert!(ask().starts_with("HTTP/1.1 200"));
        fake.marked.store(true, Ordering::Relaxed);
        assert!(ask().starts_with("HTTP/1.1 403"));
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_of_a_process_that_ended_has_an_agents_rights() {
    let world = world();
    let path = world.path.clone();
    tokio::task::spawn_blocking(move || {
        // The child connects, leaves the connection in our hands and ends.
        let script = "import socket,sys,array\n\
            c=socket.socket(socket.AF_UNIX); c.connect(sys.argv[1])\n\
            p=socket.socket(socket.AF_UNIX); p.connect(sys.argv[2])\n\
            p.sendmsg([b'x'],[(socket.SOL_SOCKET,socket.SCM_RIGHTS,array.array('i',[c.fileno()]))])";
        let handover = path.with_file_name("handover.sock");
        let listener = std::os::unix::net::UnixListener::bind(&handover).unwrap();
        let mut child = std::process::Command::new("python3").args(["-c", script]).args([&path, &handover]).spawn().unwrap();
        let (receiving, _) = listener.accept().unwrap();
        let fd = receive_fd(&receiving);
        assert!(child.wait().unwrap().success());
        let mut stream = Blocking::from(fd);
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET /v1/receipts HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = [0u8; 4096];
        let length = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    })
    .await
    .unwrap();
}

fn receive_fd(stream: &Blocking) -> std::os::fd::OwnedFd {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
    let mut byte = [0u8; 1];
    let mut iov = [std::io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::empty()).unwrap();
    let fd = message
        .cmsgs()
        .unwrap()
        .find_map(|part| match part {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        })
        .unwrap();
    // This process owns the descriptor now, and a copy of it works as well.
    let path = format!("/proc/self/fd/{fd}");
    assert!(std::fs::symlink_metadata(path).is_ok());
    rustix::process::pidfd_getfd(
        rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()).unwrap(),
        fd,
        rustix::process::PidfdGetfdFlags::empty(),
    )
    .inspect(|copy| assert!(AsRawFd::as_raw_fd(copy) != fd))
    .map_err(|error| panic!("{error}: {:?}", BorrowedFd::as_raw_fd(&std::os::fd::AsFd::as_fd(stream))))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn hundred_megabytes_are_refused_and_the_daemon_lives() {
    let world = world();
    let path = world.path.clone();
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = Blocking::connect(path).unwrap();
        stream.write_all(b"POST /v1/receipts HTTP/1.1\r\nhost: x\r\ncontent-length: 104857600\r\n\r\n").unwrap();
        let chunk = vec![b'a'; 1 << 20];
        for _ in 0..100 {
            if stream.write_all(&chunk).is_err() {
                break;
            }
        }
        let mut answer = [0u8; 4096];
        let length = stream.read(&mut answer).unwrap_or(0);
        String::from_utf8_lossy(&answer[..length]).into_owned()
    })
    .await
    .unwrap();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    let body = vec![b'a'; routes::MAX_BODY];
    let taken = world.client.call::<Value>(hyper::Method::POST, "/v1/receipts", body).await.unwrap();
    assert_eq!(taken["id"], routes::MAX_BODY.to_string());
    assert!(world.client.get::<Value>("/v1/status").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_is_cut_off_and_others_are_served() {
    let world = world();
    let path = world.path.clone();
    let half = tokio::task::spawn_blocking(move || {
        let mut stream = Blocking::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nhos").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map(|_| answer)
    });
    assert!(world.client.get::<Value>("/v1/status").await.is_ok());
    let answer = half.await.unwrap();
    assert!(answer.is_ok_and(|bytes| !bytes.starts_with(b"HTTP/1.1 200")));
}

#[tokio::test(flavor = "multi_thread")]
async fn thousand_idle_connections_leave_the_daemon_answering() {
    let world = world();
    let path = world.path.clone();
    let idle =
        tokio::task::spawn_blocking(move || (0..1_000).filter_map(|_| Blocking::connect(&path).ok()).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(idle.len(), 1_000);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while world.client.get::<Value>("/v1/status").await.is_err() {
        assert!(std::time::Instant::now() < deadline, "the daemon answers nobody");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_of_a_session_keep_nobody_else_out() {
    let world = world();
    world.fake.marked.store(true, Ordering::Relaxed);
    let path = world.path.clone();
    let slow = tokio::task::spawn_blocking(move || {
        let slow = (0..300).map(|_| {
            let mut stream = Blocking::connect(&path).unwrap();
            // Connections that were closed for later ones cannot be written to.
            let _gone = stream.write_all(b"POST /v1/receipts HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{");
            stream
        });
        slow.collect::<Vec<_>>()
    });
    let slow = slow.await.unwrap();
    // One more connection of its own replaces its oldest.
    assert!(world.client.get::<Value>("/v1/why").await.is_ok());
    world.fake.marked.store(false, Ordering::Relaxed);
    for _ in 0..20 {
        assert!(world.client.get::<Value>("/v1/status").await.is_ok());
        assert!(world.client.post::<Value>("/v1/receipts", &json!({})).await.is_ok());
    }
    let mut text = crate::metrics::Text::default();
    world.fake.counters.write(&mut text);
    let text = text.finish();
    let closed = text.lines().find_map(|line| line.strip_prefix("pp_control_closed_early_total{standing=\"agent\"} ")).unwrap();
    assert!(closed.parse::<u64>().unwrap() >= 284, "{text}");
    assert!(text.contains("pp_control_closed_early_total{standing=\"operator\"} 0\n"), "{text}");
    drop(slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_of_an_ordinary_user_is_believed_only_where_the_command_line_names_it() {
    let world = world();
    let unnamed = Client::new(&world.path, Named::Elsewhere).get::<Value>("/v1/status").await;
    if nix::unistd::getuid().is_root() {
        assert!(unnamed.is_ok());
    } else {
        assert!(matches!(unnamed, Err(ClientError::Doubted { .. })));
    }
    assert!(world.client.get::<Value>("/v1/status").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_in_a_call_is_an_answer_and_the_next_call_works() {
    let world = world();
    let check = json!({ "address": "10.0.0.1", "port": 502, "agent": "x" });
    assert_eq!(code(world.client.post::<Value>("/v1/check", &check).await), (500, "internal".into()));
    assert!(world.client.get::<Value>("/v1/status").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_gets_the_stored_events_then_each_new_one_once() {
    let world = world();
    for _ in 0..3 {
        world.fake.hub.publish(Event::new(Body::Policy(PolicyChange::Reloaded), "h", 0));
    }
    let mut lines = world.client.lines("/v1/events?follow=true&since=1").await.unwrap();
    let mut ids = Vec::new();
    while ids.len() < 2 {
        ids.push(id(&lines.next().await.unwrap().unwrap()));
    }
    world.fake.hub.publish(Event::new(Body::Policy(PolicyChange::Reloaded), "h", 0));
    ids.push(id(&lines.next().await.unwrap().unwrap()));
    assert_eq!(ids, [2, 3, 4]);
    world.fake.marked.store(true, Ordering::Relaxed);
    world.fake.hub.publish(Event::new(Body::Policy(PolicyChange::Reloaded), "h", 0));
    assert_eq!(lines.next().await.unwrap(), None);
}

fn id(line: &[u8]) -> u64 {
    serde_json::from_slice::<Value>(line).unwrap()["id"].as_u64().unwrap()
}

#[test]
fn file_in_the_way_of_the_socket_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(bind(&path), Err(ListenError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
