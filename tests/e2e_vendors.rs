//! What other vendors' callers do besides asking for a credential, on the real binary: Cloudflare's call to revoke one, and the
//! line that relays of chatmail read from a unix socket.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use test_support::api::{Answer, BEARER, KEY, WRONG, ask, key_table};
use test_support::e2e::server::{Directory, run_to_end};
use test_support::e2e::{Client, PATIENCE, Server, Settings, Wanted, wait_for};
use throughway::wire::message::METHOD_ALLOCATE;

const HOST: (&str, &str) = ("Host", "localhost");
const KEPT: &str = "\n[auth]\nrevocations_file = \"revocations\"\n";

fn own_uid() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

fn allocate_code(server: SocketAddr, username: &str, password: &str) -> u16 {
    Client::udp(server).user(username, password).request(METHOD_ALLOCATE, &[Wanted::udp()]).code()
}

/// Username and password.
fn issued(server: &Server, user: &str) -> [String; 2] {
    let answer = ask(server.http(), "GET", &format!("/v1/credentials?username={user}"), &[HOST, BEARER], "").json();
    ["username", "password"].map(|name| answer[name].as_str().unwrap().to_owned())
}

fn revoke(server: &Server, username: &str, key: (&str, &str)) -> Answer {
    let escaped = username.replace(':', "%3A");
    let target = format!("/v1/turn/keys/any-id/credentials/{escaped}/revoke");
    ask(server.http(), "POST", &target, &[HOST, key], "")
}

fn settings_with_keys() -> Settings {
    let mut settings = Settings::new(1);
    settings.tables = key_table("web", KEY, "") + &key_table("acme", "another-key", "tenant = \"acme\"");
    settings.level = "debug";
    settings
}

#[test]
fn a_caller_revokes_a_credential_as_at_cloudflare_and_its_call_ends() {
    let directory = Directory::new();
    let mut settings = settings_with_keys();
    settings.secrets = Vec::new();
    settings.tables += "[[auth.secrets]]\nid = \"main\"\nvalue = \"north-of-everything\"\nclaims = [\"tenant\"]\n";
    settings.tables += KEPT;
    let server = Server::start_in(directory, settings.clone());
    let [carol, password] = issued(&server, "carol");
    let [dave, of_dave] = issued(&server, "dave");
    let mut call = Client::udp(server.udp4()).user(&carol, &password);
    call.allocate();
    // A wrong key, another tenant's key, another method, a name of another form: nothing happens.
    assert_eq!(revoke(&server, &carol, WRONG).status, 401);
    let foreign = revoke(&server, &carol, ("Authorization", "Bearer another-key"));
    assert_eq!((foreign.status, foreign.json()["reason"].as_str()), (400, Some("bad_user")));
    assert_eq!(revoke(&server, "alice", BEARER).status, 400, "a static user is the operator's");
    assert_eq!(revoke(&server, "%FF", BEARER).status, 400);
    let get = ask(server.http(), "GET", "/v1/turn/keys/i/credentials/1%3Aa/revoke", &[HOST, BEARER], "");
    assert_eq!((get.status, get.header("allow")), (405, Some("POST, OPTIONS")));
    assert_eq!(call.refresh(600).code(), 0, "the call goes on");

    let done = revoke(&server, &carol, BEARER);
    assert_eq!((done.status, done.body.as_str(), done.header("content-type")), (204, "", None), "{done:?}");
    let session = server.log.wait_for_session("carol");
    assert_eq!(session["reason"], "revoked");
    assert_eq!(allocate_code(server.udp4(), &carol, &password), 403);
    assert_eq!(allocate_code(server.udp4(), &dave, &of_dave), 0);
    // Once more is no error, and neither is one that has ended.
    assert_eq!(revoke(&server, &carol, BEARER).status, 204);
    assert_eq!(revoke(&server, "1000:carol", BEARER).status, 204);
    let line = server.log.event("credential revoked by a caller");
    assert_eq!(
        (&line["key"], &line["username"], &line["ended"], &line["is_saved"]),
        (&"web".into(), &carol.clone().into(), &1.into(), &true.into())
    );
    let scrape = server.scrape();
    assert_eq!(scrape.value("throughway_credentials_refused_total", &[("reason", "bad_user")]), 3);
    // It outlives the process.
    let server = Server::start_in(server.into_directory(), settings);
    assert_eq!(allocate_code(server.udp4(), &carol, &password), 403);
}

#[test]
fn what_can_not_be_written_is_told_to_the_caller_and_holds_all_the_same() {
    let mut settings = settings_with_keys();
    settings.tables = key_table("web", KEY, "") + KEPT;
    let server = settings.start();
    let [carol, password] = issued(&server, "carol");
    // In place of the new file is a directory.
    fs::create_dir(server.directory().join("revocations.new")).unwrap();
    let told = revoke(&server, &carol, BEARER);
    assert_eq!((told.status, told.json()["reason"].as_str()), (503, Some("not_revoked")), "{told:?}");
    assert!(told.json()["error"].as_str().unwrap().contains("restart"), "{told:?}");
    assert_eq!(allocate_code(server.udp4(), &carol, &password), 403);
}

fn with_socket(directory: &Directory, uid: u32, more: &str) -> Settings {
    let mut settings = Settings::new(1);
    let path = directory.path().join("chatmail.sock");
    settings.http = format!("chatmail_socket = {path:?}\nunix_uids = [{uid}]\n{more}");
    settings.level = "debug";
    settings
}

/// All that the socket says.
fn read_line(path: &Path) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    stream.read_to_string(&mut line).unwrap();
    line
}

#[test]
fn a_relay_of_chatmail_reads_a_credential_that_relays() {
    let directory = Directory::new();
    let path = directory.path().join("chatmail.sock");
    let settings = with_socket(&directory, own_uid(), "chatmail_ttl = \"2h\"\n");
    let mut server = Server::start_in(directory, settings.clone());
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666, "other users can connect, and the server looks who they are");
    let line = read_line(&path);
    let (username, password) = line.strip_suffix('\n').unwrap().split_once(':').unwrap();
    // The reader takes the username as a number.
    let expires_at: u64 = username.parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!((now + 7100..=now + 7200).contains(&expires_at), "{expires_at} is two hours after {now}");
    assert_eq!(password.len(), 28, "{password}");
    let mut client = Client::udp(server.udp4()).user(username, password);
    client.allocate();
    assert_eq!(client.refresh(0).code(), 0);
    let issued = server.log.event("credential issued");
    assert_eq!((&issued["key"], &issued["ttl"], &issued["username"]), (&"unix".into(), &7200.into(), &username.into()));
    assert!(!server.log.text().contains(password), "no password is logged");
    // Who says something first, or goes at once, changes nothing for the next one.
    let mut talker = UnixStream::connect(&path).unwrap();
    // The server may have closed it by now.
    let _ = talker.write_all(&[b'x'; 4096]);
    drop(UnixStream::connect(&path).unwrap());
    assert!(read_line(&path).ends_with("=\n"));
    drop(talker);
    // A reload changes who may, and takes the socket away.
    let mut other = settings.clone();
    other.http =
        settings.http.replace(&format!("unix_uids = [{}]", own_uid()), &format!("unix_uids = [{}]", own_uid() + 1));
    server.reload(other);
    assert_eq!(read_line(&path), "", "another user gets nothing");
    wait_for("the refusal", || {
        server.log.events("credential refused").into_iter().find(|event| event["reason"] == "no_key")
    });
    let mut without = settings;
    without.http = String::new();
    server.reload(without);
    wait_for("the socket to go", || UnixStream::connect(&path).is_err().then_some(()));
}

#[test]
fn the_rate_of_a_socket_is_bounded_and_beyond_it_there_is_no_line() {
    let directory = Directory::new();
    let path = directory.path().join("chatmail.sock");
    let settings = with_socket(&directory, own_uid(), "").limit("credentials_per_key", "3");
    let server = Server::start_in(directory, settings);
    let lines: Vec<String> = (0..8).map(|_| read_line(&path)).collect();
    let given = lines.iter().filter(|line| !line.is_empty()).count();
    assert!((3..=4).contains(&given), "{given} lines: one place comes back every 20 seconds");
    let scrape = server.scrape();
    assert_eq!(scrape.value("throughway_credentials_refused_total", &[("reason", "rate_key")]), 8 - given as u64);
    assert_eq!(scrape.value("throughway_credentials_issued_total", &[("key", "unix")]), given as u64);
}

#[test]
fn a_lifetime_that_the_relay_would_refuse_does_not_start() {
    let directory = Directory::new();
    let config = directory.path().join("config.toml");
    let text = "[http]\nlisten = \"\"\nunix_uids = [0]\nchatmail_socket = \"/run/c.sock\"\nchatmail_ttl = \"5d\"\n\
                [[auth.secrets]]\nid = \"main\"\nvalue = \"north-of-everything\"\n";
    fs::write(&config, text).unwrap();
    let (code, said) = run_to_end(&config);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("http.chatmail_ttl = \"5d\"") && said.contains("raise auth.max_ttl"), "{said}");
}
