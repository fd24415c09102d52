//! The lines of each program. Key names and forms were checked against the program's documentation or source.

use std::fmt::Write as _;

use super::Product;
use super::quote::{asterisk, env, json, lua, xml};
use super::relay::Relay;
use crate::address::Transport;
use crate::cli::mint_format::{encoded, quoted};
use crate::turn_uri::TurnUri;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// What to write, and what to know.
pub(super) struct Recipe {
    pub(super) blocks: Vec<Block>,
    pub(super) notes: Vec<String>,
}

/// Lines for one place.
pub(super) struct Block {
    /// Where they go.
    pub(super) place: String,
    comment: Comment,
    text: String,
}

/// How a comment looks there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comment {
    Hash,
    Semicolon,
    Dashes,
    Slashes,
    Xml,
    /// There is none, as in JSON.
    Missing,
}

impl Block {
    fn new(place: &str, comment: Comment, text: String) -> Self {
        Self { place: place.to_owned(), comment, text: text.trim_end().to_owned() }
    }

    pub(super) fn is_without_comment(&self) -> bool {
        self.comment == Comment::Missing
    }

    /// With a comment that names the place.
    pub(super) fn to_text(&self) -> String {
        let Self { place, text, .. } = self;
        match self.comment {
            Comment::Hash => format!("# {place}\n{text}"),
            Comment::Semicolon => format!("; {place}\n{text}"),
            Comment::Dashes => format!("-- {place}\n{text}"),
            Comment::Slashes => format!("// {place}\n{text}"),
            Comment::Xml => format!("<!-- {place} -->\n{text}"),
            Comment::Missing => text.clone(),
        }
    }
}

/// The recipe of a program.
///
/// # Errors
/// What the configuration lacks, and the remedy.
pub(super) fn recipe(product: Product, mut relay: Relay<'_>) -> Result<Recipe, String> {
    let blocks = match product {
        Product::Asterisk => asterisk_lines(&mut relay)?,
        Product::BigBlueButton => bigbluebutton(&mut relay)?,
        Product::Chatmail => chatmail(&mut relay)?,
        Product::Ejabberd => ejabberd(&mut relay)?,
        Product::FreeSwitch => with_issuer(&mut relay, FREESWITCH)?,
        Product::Galene => galene(&mut relay)?,
        Product::HomeAssistant => home_assistant(&mut relay)?,
        Product::Janus => janus(&mut relay)?,
        Product::Jitsi => jitsi(&mut relay)?,
        Product::LiveKit => livekit(&mut relay)?,
        Product::Matrix => matrix(&mut relay)?,
        Product::Mattermost => mattermost(&mut relay)?,
        Product::MediaMtx => mediamtx(&mut relay)?,
        Product::Mediasoup => with_issuer(&mut relay, MEDIASOUP)?,
        Product::Nextcloud => nextcloud(&mut relay)?,
        Product::PeerJs => with_issuer(&mut relay, PEERJS)?,
        Product::RocketChat => rocketchat(&mut relay)?,
    };
    Ok(Recipe { blocks, notes: relay.into_notes() })
}

/// HOST:PORT, an IPv6 address in brackets.
fn place(server: &TurnUri) -> String {
    let host = if server.host.contains(':') { format!("[{}]", server.host) } else { server.host.to_string() };
    format!("{host}:{}", server.port)
}

/// The transport in the sense of `?transport=`.
const fn transport(server: &TurnUri) -> &'static str {
    match server.transport {
        Transport::Udp => "udp",
        Transport::Tcp | Transport::Tls => "tcp",
    }
}

fn asterisk_lines(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    let missing = "Asterisk asks for its relay over TCP only, and no TCP listener is in the configuration: add listen.tcp = [\"0.0.0.0:3478\"]";
    let tcp = relay.first(Transport::Tcp).ok_or(missing)?;
    if tcp.host.contains(':') {
        return Err("Asterisk takes an IPv4 address or a name for its relay: give --host NAME".to_owned());
    }
    let user = relay.user("asterisk")?;
    let mut text = "[general]\nicesupport = yes\n".to_owned();
    if let Some(stun) = relay.stun() {
        let _ = writeln!(text, "stunaddr = {}", place(&stun));
    }
    let _ = writeln!(text, "turnaddr = {}", place(&tcp));
    let _ = writeln!(text, "turnusername = {}\nturnpassword = {}", asterisk(&user.name), asterisk(&user.password));
    Ok(vec![Block::new("/etc/asterisk/rtp.conf", Comment::Semicolon, text)])
}

fn bigbluebutton(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    let secret = xml(&relay.secret()?);
    let ttl = relay.ttl(DAY);
    let mut beans = String::new();
    let mut sets = "    <property name=\"stunServers\">\n      <set>\n".to_owned();
    let class = "org.bigbluebutton.web.services.turn";
    if let Some(stun) = relay.stun() {
        let _ = writeln!(beans, "  <bean id=\"stun0\" class=\"{class}.StunServer\">");
        let _ = writeln!(beans, "    <constructor-arg index=\"0\" value=\"{stun}\"/>\n  </bean>");
        sets += "        <ref bean=\"stun0\"/>\n";
    }
    sets += "      </set>\n    </property>\n";
    sets += "    <property name=\"turnServers\">\n      <set>\n";
    for (at, server) in relay.servers.iter().enumerate() {
        let _ = writeln!(beans, "  <bean id=\"turn{at}\" class=\"{class}.TurnServer\">");
        for (index, value) in [secret.as_str(), &server.to_string(), &ttl.to_string()].iter().enumerate() {
            let _ = writeln!(beans, "    <constructor-arg index=\"{index}\" value=\"{value}\"/>");
        }
        beans += "  </bean>\n";
        let _ = writeln!(sets, "        <ref bean=\"turn{at}\"/>");
    }
    sets += "      </set>\n    </property>\n";
    let text = format!(
        "<beans xmlns=\"http://www.springframework.org/schema/beans\"\n       \
         xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"\n       \
         xsi:schemaLocation=\"http://www.springframework.org/schema/beans\n         \
         http://www.springframework.org/schema/beans/spring-beans-2.5.xsd\">\n{beans}  \
         <bean id=\"stunTurnService\" class=\"{class}.StunTurnService\">\n{sets}  </bean>\n</beans>"
    );
    Ok(vec![Block::new("/etc/bigbluebutton/turn-stun-servers.xml", Comment::Xml, text)])
}

fn chatmail(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    let missing = "chatmail reads its credentials from a unix socket, and the configuration has none: set http.chatmail_socket = \
                   \"/run/throughway/chatmail.sock\" and http.unix_uids to the number that `id -u vmail` prints";
    let socket = relay.chatmail_socket().ok_or(missing)?;
    match relay.first(Transport::Udp) {
        Some(udp) if udp.port == 3478 => {}
        Some(udp) => relay.note(format!(
            "chatmail tells its clients UDP port 3478, but this server listens on {}: add listen.udp = [\"0.0.0.0:3478\"]",
            udp.port
        )),
        None => relay.note("chatmail tells its clients UDP port 3478, but no UDP listener is in the configuration"),
    }
    relay.note("chatmail tells its clients its mail domain as the name of this server, so both must be one machine");
    let text = format!("turn_socket_path = {socket}");
    Ok(vec![Block::new("chatmail.ini, in the section [params]", Comment::Hash, text)])
}

fn ejabberd(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    let secret = json(&relay.secret()?);
    let lifetime = relay.ttl(12 * HOUR);
    let mut text = format!(
        "modules:\n  mod_stun_disco:\n    secret: {secret}\n    credentials_lifetime: {lifetime} seconds\n    \
         offer_local_services: false\n    services:\n"
    );
    for (server, is_restricted) in
        relay.stun().iter().map(|stun| (stun, false)).chain(relay.servers.iter().map(|turn| (turn, true)))
    {
        let _ = writeln!(
            text,
            "      - type: {}\n        host: {}\n        port: {}\n        transport: {}\n        restricted: {is_restricted}",
            server.scheme_name(),
            json(&server.host),
            server.port,
            transport(server)
        );
    }
    Ok(vec![Block::new("ejabberd.yml", Comment::Hash, text)])
}

fn galene(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    relay.fixed_ttl(DAY);
    let server = serde_json::json!({
        "urls": relay.urls(), "username": "galene", "credential": relay.secret()?, "credentialType": "hmac-sha1",
    });
    let text = format!("{:#}", serde_json::json!([server]));
    Ok(vec![Block::new("data/ice-servers.json of Galene", Comment::Missing, text)])
}

fn home_assistant(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    let user = relay.user("home-assistant")?;
    let login = |indent: &str| {
        format!("{indent}username: {}\n{indent}credential: {}\n", json(&user.name), json(&user.password))
    };
    let list = |urls: Vec<String>| urls.iter().map(|url| json(url)).collect::<Vec<_>>().join(", ");
    let stun: Vec<String> = relay.stun().iter().map(ToString::to_string).collect();
    let write = |head: &str, key: &str| {
        let mut text = head.to_owned();
        if !stun.is_empty() {
            let _ = writeln!(text, "    - {key}: [{}]", list(stun.clone()));
        }
        let _ = write!(text, "    - {key}: [{}]\n{}", list(relay.urls()), login("      "));
        text
    };
    Ok(vec![
        Block::new("configuration.yaml of Home Assistant", Comment::Hash, write("web_rtc:\n  ice_servers:\n", "url")),
        Block::new("go2rtc.yaml", Comment::Hash, write("webrtc:\n  ice_servers:\n", "urls")),
    ])
}

fn janus(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    let mut text = "nat: {\n".to_owned();
    if let Some(stun) = relay.stun() {
        let _ = writeln!(text, "  stun_server = {}\n  stun_port = {}", json(&stun.host), stun.port);
    }
    if relay.servers.iter().any(|server| server.host.contains(':')) {
        relay.note("Janus does not read IPv6 addresses here: give --host NAME");
    }
    match (relay.api_key("janus"), relay.endpoint()) {
        (Some(name), Ok(base)) => {
            let key = format!("the API key \"{name}\"");
            let _ = writeln!(
                text,
                "  turn_rest_api = {}\n  turn_rest_api_key = {}\n  turn_rest_api_method = \"GET\"",
                json(&format!("{base}/turn")),
                json(&key)
            );
            relay.note(format!("{key} is not in the configuration, only its digest: fill it in"));
        }
        (Some(_), Err(error)) => return Err(error),
        (None, _) => {
            let user = relay.user("janus")?;
            let server = relay.servers[0].clone();
            let kind = if server.transport == Transport::Tls { "tls" } else { transport(&server) };
            let _ = writeln!(
                text,
                "  turn_server = {}\n  turn_port = {}\n  turn_type = \"{kind}\"\n  turn_user = {}\n  turn_pwd = {}",
                json(&server.host),
                server.port,
                json(&user.name),
                json(&user.password)
            );
        }
    }
    Ok(vec![Block::new("/etc/janus/janus.jcfg", Comment::Hash, text + "}")])
}

fn jitsi(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    let secret = relay.secret()?;
    let ttl = relay.ttl(DAY);
    let mut text = format!("external_service_secret = {};\nexternal_services = {{\n", lua(&secret));
    if let Some(stun) = relay.stun() {
        let _ = writeln!(
            text,
            "  {{ type = \"stun\", host = {}, port = {}, transport = \"udp\" }},",
            lua(&stun.host),
            stun.port
        );
    }
    for server in &relay.servers {
        let _ = writeln!(
            text,
            "  {{ type = \"{}\", host = {}, port = {}, transport = \"{}\", secret = true, ttl = {ttl}, algorithm = \"turn\" }},",
            server.scheme_name(),
            lua(&server.host),
            server.port,
            transport(server)
        );
    }
    text += "};\n";
    let prosody = Block::new("/etc/prosody/conf.avail/YOUR.DOMAIN.cfg.lua", Comment::Dashes, text);
    Ok(vec![prosody, Block::new(".env of docker-jitsi-meet", Comment::Hash, jitsi_container(relay, &secret, ttl))])
}

/// The container has one port for `turn`, with one transport or both.
fn jitsi_container(relay: &Relay<'_>, secret: &str, ttl: u64) -> String {
    let mut text = format!("TURN_CREDENTIALS={}\nTURN_TTL={ttl}\n", env(secret));
    if let Some(stun) = relay.stun() {
        let _ = writeln!(text, "STUN_HOST={}\nSTUN_PORT={}", env(&stun.host), stun.port);
    }
    let (udp, tcp) = (relay.first(Transport::Udp), relay.first(Transport::Tcp));
    if let Some(first) = udp.as_ref().or(tcp.as_ref()) {
        let same: Vec<&str> =
            [&udp, &tcp].into_iter().flatten().filter(|server| server.port == first.port).map(transport).collect();
        let _ = writeln!(
            text,
            "TURN_HOST={}\nTURN_PORT={}\nTURN_TRANSPORT={}",
            env(&first.host),
            first.port,
            same.join(",")
        );
    }
    if let Some(tls) = relay.first(Transport::Tls) {
        let _ = writeln!(text, "TURNS_HOST={}\nTURNS_PORT={}", env(&tls.host), tls.port);
    }
    text
}

fn livekit(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    let secret = json(&relay.secret()?);
    let ttl = relay.ttl(4 * HOUR);
    let mut text = "rtc:\n  turn_servers:\n".to_owned();
    for server in &relay.servers {
        let _ = writeln!(
            text,
            "    - host: {}\n      port: {}\n      protocol: {}\n      secret: {secret}\n      ttl: {ttl}",
            json(&server.host),
            server.port,
            server.transport.name()
        );
    }
    Ok(vec![Block::new("livekit.yaml", Comment::Hash, text)])
}

fn matrix(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    let mut text = "turn_uris:\n".to_owned();
    for url in relay.urls() {
        let _ = writeln!(text, "  - {}", json(&url));
    }
    let lifetime = relay.ttl(HOUR);
    let _ = writeln!(
        text,
        "turn_shared_secret: {}\nturn_user_lifetime: {lifetime}s\nturn_allow_guests: false",
        json(&relay.secret()?)
    );
    Ok(vec![Block::new("homeserver.yaml of Synapse", Comment::Hash, text)])
}

fn mattermost(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    let mut servers: Vec<_> =
        relay.stun().iter().map(|stun| serde_json::json!({ "urls": [stun.to_string()] })).collect();
    servers.push(serde_json::json!({ "urls": relay.urls() }));
    let calls = serde_json::json!({
        "iceserversconfigs": serde_json::Value::from(servers).to_string(),
        "turnstaticauthsecret": relay.secret()?,
        "turncredentialsexpirationminutes": relay.ttl(4 * HOUR).div_ceil(60),
    });
    let text =
        format!("{:#}", serde_json::json!({ "PluginSettings": { "Plugins": { "com.mattermost.calls": calls } } }));
    Ok(vec![Block::new("config.json of Mattermost; add these keys to the ones that are there", Comment::Missing, text)])
}

fn mediamtx(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    relay.fixed_ttl(DAY);
    let secret = json(&relay.secret()?);
    let mut text = "webrtcICEServers2:\n".to_owned();
    if let Some(stun) = relay.stun() {
        let _ = writeln!(text, "  - url: {}", json(&stun.to_string()));
    }
    for url in relay.urls() {
        let _ = writeln!(text, "  - url: {}\n    username: AUTH_SECRET\n    password: {secret}", json(&url));
    }
    Ok(vec![Block::new("mediamtx.yml", Comment::Hash, text)])
}

fn nextcloud(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    relay.fixed_ttl(DAY);
    let secret = relay.secret()?;
    let occ = "sudo -u www-data php occ";
    let mut text = String::new();
    if let Some(stun) = relay.stun() {
        let _ = writeln!(text, "{occ} talk:stun:add {}", quoted(&place(&stun)));
    }
    let (udp, tcp) = (relay.first(Transport::Udp), relay.first(Transport::Tcp));
    let entries = match (&udp, &tcp) {
        (Some(udp), Some(tcp)) if place(udp) == place(tcp) => vec![("turn", place(udp), "udp,tcp")],
        _ => [&udp, &tcp].into_iter().flatten().map(|server| ("turn", place(server), transport(server))).collect(),
    };
    let tls = relay.first(Transport::Tls).map(|tls| ("turns", place(&tls), "tcp"));
    for (scheme, at, protocols) in entries.into_iter().chain(tls) {
        let _ = writeln!(text, "{occ} talk:turn:add {scheme} {} {protocols} --secret={}", quoted(&at), quoted(&secret));
    }
    let talk = Block::new("in the directory of Nextcloud", Comment::Hash, text);
    let text = format!(
        "[turn]\n# make it with `openssl rand -hex 16`, and give it to Janus as turn_rest_api_key\napikey = YOUR-KEY\nsecret = \
         {secret}\nservers = {}",
        relay.urls().join(",")
    );
    Ok(vec![talk, Block::new("server.conf of the signaling server, if you have one", Comment::Hash, text)])
}

fn rocketchat(relay: &mut Relay<'_>) -> Result<Vec<Block>, String> {
    let user = relay.user("rocketchat")?;
    let login = format!("{}:{}", encoded(&user.name), encoded(&user.password));
    let stun = relay.stun().map(|stun| stun.to_string());
    let turn = relay.urls().into_iter().map(|url| format!("{login}@{url}"));
    let text = stun.into_iter().chain(turn).collect::<Vec<_>>().join(", ");
    let place = "the setting WebRTC_Servers of Rocket.Chat: Administration, Settings, WebRTC";
    Ok(vec![Block::new(place, Comment::Missing, text)])
}

/// What a page does with its servers.
struct Page {
    place: &'static str,
    text: &'static str,
}

const FETCH: &str = "const iceServers = await (await fetch('/ice-servers')).json();\n";

const FREESWITCH: Page = Page {
    place: "in the web page, beside the other options of Verto",
    text: "const verto = new jQuery.verto({ ...options, iceServers }, callbacks);",
};

const MEDIASOUP: Page = Page {
    place: "in the web page, with mediasoup-client",
    text: "const sending = device.createSendTransport({ ...sendOptions, iceServers });\n\
           const receiving = device.createRecvTransport({ ...receiveOptions, iceServers });",
};

const PEERJS: Page = Page {
    place: "in the web page, with PeerJS or with simple-peer",
    text: "const peer = new Peer(id, { config: { iceServers } });\n\
           const simple = new SimplePeer({ initiator, config: { iceServers } });",
};

/// Programs that leave credentials to the application: code for its server, and for its page.
fn with_issuer(relay: &mut Relay<'_>, page: Page) -> Result<Vec<Block>, String> {
    let urls: Vec<String> = relay.urls().iter().map(|url| format!("  {},\n", json(url))).collect();
    let ttl = relay.ttl(HOUR);
    let text = format!(
        "import {{ createHmac }} from 'node:crypto';\n\n\
         const SECRET = {};\nconst URLS = [\n{}];\n\n\
         export function iceServers(userId) {{\n  \
         const username = `${{Math.floor(Date.now() / 1000) + {ttl}}}:${{userId}}`;\n  \
         const credential = createHmac('sha1', SECRET).update(username).digest('base64');\n  \
         return [{{ urls: URLS, username, credential }}];\n}}",
        json(&relay.secret()?),
        urls.concat()
    );
    Ok(vec![
        Block::new(
            "on your application's server: what it answers at /ice-servers, to users who have logged in",
            Comment::Slashes,
            text,
        ),
        Block::new(page.place, Comment::Slashes, format!("{FETCH}{}", page.text)),
    ])
}
