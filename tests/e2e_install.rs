//! What an operator runs on the first day, on the real binary: `init`, `service`, `health`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use test_support::e2e;
use test_support::e2e::server::Directory;
use test_support::e2e::{Server, Settings, wait_for};
use throughway::config::{Config, Environment};

/// A command of ours to its end, which must come by itself: exit code, standard output and standard error.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
    end(command.args(arguments).env_clear().stdin(Stdio::null()))
}

fn end(command: &mut Command) -> (i32, String, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = wait_for("the command to end", || child.try_wait().unwrap());
    let (mut said, mut failed) = (String::new(), String::new());
    child.stdout.unwrap().read_to_string(&mut said).unwrap();
    child.stderr.unwrap().read_to_string(&mut failed).unwrap();
    (status.code().unwrap_or(-1), said, failed)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn is_unhealthy(arguments: &[&str], why: &str) {
    let (code, said, failed) = run(&[&["health"], arguments].concat());
    assert_eq!((code, said.as_str()), (1, ""), "{failed}");
    assert!(failed.contains(why), "{failed}\nlacks {why}");
    assert_eq!(failed.lines().count(), 1, "one line: {failed}");
}

#[test]
fn health_tells_a_server_that_lives_and_ready_one_that_takes_sessions() {
    let directory = Directory::new();
    let socket = directory.path().join("admin.sock");
    let mut settings = Settings::new(1);
    settings.http = format!("admin_socket = {socket:?}\n");
    let mut server = Server::start_in(directory, settings);
    let config = server.directory().join("config.toml");
    // http.listen lets the system choose the port: the unix socket is what the configuration tells.
    let of_config = ["--config", text(&config)];
    let url = format!("http://{}", server.http());
    for of_server in [&of_config[..], &["--url", &url], &["--url", &format!("unix:{}", socket.display())]] {
        assert_eq!(run(&[&["health"], of_server].concat()), (0, "alive\n".to_owned(), String::new()));
        assert_eq!(run(&[&["health", "--ready"], of_server].concat()), (0, "ready\n".to_owned(), String::new()));
    }
    let mut client = e2e::Client::udp(server.udp4()).user("alice", "wonderland");
    client.allocate();
    let (code, _, failed) = run(&[&["drain"], &of_config[..]].concat());
    assert_eq!(code, 0, "{failed}");
    assert_eq!(run(&["health", "--url", &url]).0, 0, "it lives");
    is_unhealthy(&["--ready", "--url", &url], "503 Service Unavailable: draining");
    assert_eq!(client.refresh(0).code(), 0);
    server.wait();
    is_unhealthy(&of_config, "no answer from unix:");
}

#[test]
fn health_ends_within_its_time_whatever_hangs() {
    // It accepts, in the kernel, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    is_unhealthy(&["--timeout", "1", "--url", &url], "no ");
    let directory = Directory::new();
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    is_unhealthy(&["--timeout", "1", "--config", text(&pipe)], "is no ordinary file");
}

#[test]
fn health_is_not_what_another_program_answers_or_a_wrong_configuration() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", other.local_addr().unwrap());
    let answers = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").unwrap();
    });
    is_unhealthy(&["--url", &url], "is not throughway");
    answers.join().unwrap();
    is_unhealthy(&["--url", &url], "no answer from http://127.0.0.1:");
    is_unhealthy(&["--config", "/nowhere/config.toml"], "can't read the configuration");
    let directory = Directory::new();
    let path = directory.path().join("c.toml");
    fs::write(&path, "http.listen = \"\"\nhttp.admin_socket = \"none\"\n").unwrap();
    is_unhealthy(&["--config", text(&path)], "has no admin API");
}

#[test]
fn init_writes_a_configuration_that_only_its_group_reads_and_none_twice() {
    let directory = Directory::new();
    let path = directory.path().join("new/config.toml");
    let write = |more: &[&str]| run(&[&["init", "--non-interactive", "--config", text(&path)], more].concat());
    let (code, said, failed) = write(&["--host", "turn.example.org", "--external", "45.0.0.7"]);
    assert_eq!((code, failed.as_str()), (0, ""), "{said}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
    for line in ["Wrote ", "ufw allow 3478", "turn.example.org.  A     45.0.0.7", "throughway check-config "] {
        assert!(said.contains(line), "{said}\nlacks {line}");
    }
    let config = Config::load(&path, &Environment::default()).unwrap();
    let secret = config.auth.secrets[0].value.expose().to_vec();
    assert_eq!(secret.len(), 64);
    assert!(!said.contains(std::str::from_utf8(&secret).unwrap()), "the secret is in the file only");
    let (code, checked, failed) = run(&["check-config", text(&path)]);
    assert_eq!(code, 0, "{failed}");
    assert!(checked.contains("clients are told 45.0.0.7"), "{checked}");
    let (code, minted, failed) = run(&["credentials", "mint", "--user", "alice", "--config", text(&path)]);
    assert_eq!(code, 0, "{failed}");
    assert!(minted.contains("turn:turn.example.org:3478?transport=udp"), "{minted}");

    let before = fs::read(&path).unwrap();
    let (code, _, failed) = write(&[]);
    assert_eq!(code, 2);
    assert!(failed.contains("exists; --force replaces it"), "{failed}");
    assert_eq!(fs::read(&path).unwrap(), before);
    let (code, _, failed) = write(&["--force"]);
    assert_eq!(code, 0, "{failed}");
    let config = Config::load(&path, &Environment::default()).unwrap();
    assert_ne!(config.auth.secrets[0].value.expose(), secret, "each has a secret of its own");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing stays beside it");
}

#[test]
fn init_makes_directories_that_the_servers_user_can_enter_whatever_the_umask_is() {
    let directory = Directory::new();
    let path = directory.path().join("etc/new/config.toml");
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077; exec \"$0\" init --non-interactive --config \"$1\""]);
    let (code, _, failed) = end(command.arg(env!("CARGO_BIN_EXE_throughway")).arg(&path));
    assert_eq!(code, 0, "{failed}");
    for made in [path.parent().unwrap(), path.parent().unwrap().parent().unwrap()] {
        assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o7777, 0o755, "{}", made.display());
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
}

#[test]
fn init_writes_through_a_link_and_says_where_one_leads_to_nothing() {
    let directory = Directory::new();
    let (path, target) = (directory.path().join("config.toml"), directory.path().join("elsewhere.toml"));
    std::os::unix::fs::symlink("elsewhere.toml", &path).unwrap();
    let write = |more: &[&str]| run(&[&["init", "--non-interactive", "--config", text(&path)], more].concat());
    let (code, _, failed) = write(&[]);
    assert_eq!(code, 2, "{failed}");
    for part in ["config.toml is a link to elsewhere.toml, which is not there", "--force"] {
        assert!(failed.contains(part), "{failed}\nlacks {part}");
    }
    // The first makes what is missing, the second one replaces it.
    for _ in 0..2 {
        let (code, _, failed) = write(&["--force"]);
        assert_eq!(code, 0, "{failed}");
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink(), "the link stays");
        assert!(fs::symlink_metadata(&target).unwrap().is_file());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing stays beside it");
    }
    let (code, _, failed) = write(&[]);
    assert!(code == 2 && failed.contains("exists; --force replaces it"), "{failed}");
}

#[test]
fn a_server_that_could_not_keep_revocations_says_so_at_its_start() {
    let directory = Directory::new();
    let path = directory.path().join("c.toml");
    let lines = "[listen]\nudp = [\"127.0.0.1:0\"]\ntcp = []\n[http]\nlisten = \"127.0.0.1:0\"\n\
                 [auth]\nrevocations_file = \"/proc/x\"\n\
                 [[auth.secrets]]\nid = \"a\"\nvalue = \"north-of-everything\"\n";
    fs::write(&path, lines).unwrap();
    let (code, _, failed) = run(&["serve", "--config", text(&path)]);
    assert_eq!(code, 1, "{failed}");
    assert!(failed.contains("auth.revocations_file") && failed.contains("/proc/x"), "{failed}");
}

#[test]
fn init_with_an_email_writes_what_the_server_starts_with_and_none_is_asked_for_without_one() {
    let directory = Directory::new();
    let path = directory.path().join("config.toml");
    let write = |more: &[&str]| run(&[&["init", "--non-interactive", "--config", text(&path)], more].concat());
    // As the package does.
    assert_eq!(write(&[]).0, 0);
    assert!(!fs::read_to_string(&path).unwrap().contains("acme"));
    let (code, said, failed) =
        write(&["--force", "--host", "turn.example.org", "--external", "45.0.0.7", "--email", "ops@example.org"]);
    assert_eq!((code, failed.as_str()), (0, ""), "{said}");
    for line in ["turn.example.org.  A     45.0.0.7", "TCP port 80 of it must be reachable", "TCP 3478, 5349, 80"] {
        assert!(said.contains(line), "{said}\nlacks {line}");
    }
    let acme = Config::load(&path, &Environment::default()).unwrap().tls.acme.unwrap();
    assert_eq!((&*acme.domains[0], acme.email.as_deref()), ("turn.example.org", Some("ops@example.org")));
    assert_eq!(acme.state, directory.path().join("acme"));
    let (code, checked, failed) = run(&["check-config", text(&path)]);
    assert_eq!(code, 0, "{failed}");
    assert!(checked.contains("turn.example.org"), "{checked}");
}

#[test]
fn init_writes_nothing_that_the_server_would_refuse() {
    let directory = Directory::new();
    let path = directory.path().join("config.toml");
    for (arguments, why) in [
        (
            &["--host", "https://turn.example.org/"][..],
            "'https://turn.example.org/' for '--host <NAME>': expected a host name",
        ),
        (&["--relay-ports", "9-8"], "relay.ports = \"9-8\": "),
        (&["--port", "50000"], "relay.ports"),
        (&["--external", "45.0.0.7,45.0.0.8"], "a second ipv4 address"),
        (&["--external", "turn.example.org"], "invalid value"),
        (&["--email", "ops@example.org"], "--host"),
        (&["--host", "turn.example.org", "--email", "ops"], "is not an e-mail address"),
        (&["--host", "192.0.2.7", "--email", "ops@example.org"], "is not a host name"),
        (&["--host", "turn.example.org", "--email", "ops@example.org", "--tls-port", "3478"], "3478"),
        (
            &["--host", "turn.example.org", "--email", "ops@example.org", "--certificate", "a", "--private-key", "b"],
            "cannot be used with",
        ),
        (
            &["--certificate", "/nowhere/chain.pem", "--private-key", "/nowhere/key.pem"],
            "/nowhere/chain.pem: can't be read",
        ),
        (&["--certificate", "/nowhere/chain.pem"], "--private-key"),
    ] {
        let (code, _, failed) = run(&[&["init", "--non-interactive", "--config", text(&path)], arguments].concat());
        assert_eq!(code, 2, "{arguments:?}: {failed}");
        assert!(failed.contains(why), "{arguments:?}: {failed}\nlacks {why}");
    }
    let (code, _, failed) = run(&["init", "--config", text(&path)]);
    assert_eq!(code, 2);
    assert!(failed.contains("--non-interactive"), "{failed}");
    let (code, _, failed) = run(&["init", "--non-interactive", "--config", "/proc/nowhere/config.toml"]);
    assert_eq!(code, 1);
    assert!(failed.starts_with("can't write /proc/nowhere/config.toml: "), "{failed}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn init_asks_the_stun_server_that_it_is_given_and_believes_no_private_address() {
    let server = Server::ordinary(1);
    let directory = Directory::new();
    let path = directory.path().join("config.toml");
    let stun = server.udp4().to_string();
    let (code, _, failed) = run(&["init", "--non-interactive", "--config", text(&path), "--stun", &stun]);
    assert_eq!(code, 1, "{failed}");
    assert!(failed.contains(&format!("--stun {stun}: sees this machine as 127.0.0.1")), "{failed}");
    assert!(!path.exists());
}

/// On a terminal, which `script` makes.
#[test]
fn init_asks_a_person() {
    let directory = Directory::new();
    let path = directory.path().join("config.toml");
    let command = format!("{} init --config {} --external 45.0.0.7", env!("CARGO_BIN_EXE_throughway"), path.display());
    let answers = directory.path().join("answers");
    fs::write(&answers, "a b\nturn.example.org\n50000-50100\nops@example.org\n443\n").unwrap();
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).stdin(fs::File::open(&answers).unwrap());
    let (code, said, _) = end(&mut script);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("Host name of this server") && said.contains("without scheme, port"), "{said}");
    let config = Config::load(&path, &Environment::default()).unwrap();
    assert_eq!(config.http.issuing.public_name.as_deref(), Some("turn.example.org"));
    assert_eq!(config.relay.ports, 50000..=50100);
    let acme = config.tls.acme.unwrap();
    assert_eq!((&*acme.domains[0], acme.email.as_deref()), ("turn.example.org", Some("ops@example.org")));
    assert!(said.contains("TCP port 443 of it must be reachable"), "{said}");
}

#[test]
fn service_shows_its_steps_and_does_nothing_without_root() {
    // What a real run would refuse is told, and is no success.
    let wanted = i32::from(!Path::new("/run/systemd/system").is_dir());
    let (code, steps, failed) = run(&["service", "install", "--dry-run", "--now"]);
    assert_eq!((code, failed.contains("none of it would be done")), (wanted, wanted == 1), "{failed}");
    for step in
        ["systemd-sysusers /etc/sysusers.d/throughway.conf", "systemctl enable throughway.service", "reload-or-restart"]
    {
        assert!(steps.contains(step), "{steps}");
    }
    let (code, steps, _) = run(&["service", "uninstall", "--dry-run"]);
    assert_eq!(code, wanted);
    assert!(steps.contains("rm -f /etc/systemd/system/throughway.service") && !steps.contains("userdel"), "{steps}");
    // Never as root: this machine may have a systemd. tests/systemd/run does it in one of its own.
    let own = Path::new(env!("CARGO_BIN_EXE_throughway"));
    let directory = Directory::new();
    let copy = directory.path().join("throughway");
    let mut command = if rustix::process::geteuid().is_root() {
        // Others may not enter the directory of the build.
        fs::copy(own, &copy).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&copy);
        command
    } else {
        Command::new(own)
    };
    let (code, said, failed) = end(command.args(["service", "install"]).stdin(Stdio::null()));
    assert_eq!((code, said.as_str()), (1, ""), "{failed}");
    assert!(failed.contains("needs root") && failed.contains("--dry-run"), "{failed}");
}
