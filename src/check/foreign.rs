//! Another implementation's eyes: `turn::client` allocates over UDP and meets the first client through the relay.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use turn::client::{Client as ForeignClient, ClientConfig};
use webrtc_util::Conn;

use crate::check::client::Client;
use crate::check::link::udp_socket;
use crate::check::relay::mark;
use crate::check::report::Step;
use crate::check::server::Server;

const NAME: &str = "foreign-client";

/// How often a datagram is sent before it counts as lost for good.
const TRIES: u32 = 3;

/// One step; the first client must hold its allocation at `relayed`.
pub(super) async fn meet(server: &Server<'_>, first: &mut Client, relayed: SocketAddr) -> Step {
    // Its requests are repeated for a minute; that is too long here.
    let within = server.options.timeout * 3;
    match tokio::time::timeout(within, try_meet(server, first, relayed)).await {
        Ok(Ok(detail)) => Step::ok(NAME, detail),
        Ok(Err(error)) => Step::warn(
            NAME,
            format!("another implementation (turn::client) does not get through: {error}"),
            "our own client does, so read the two exchanges side by side (log level debug)",
        ),
        Err(_) => Step::warn(
            NAME,
            format!("another implementation (turn::client) was not done within {} ms", within.as_millis()),
            "our own client was, so look for loss on the way",
        ),
    }
}

async fn try_meet(server: &Server<'_>, first: &mut Client, relayed: SocketAddr) -> Result<String, String> {
    let login = server.login.ok_or("no credentials")?;
    let socket = udp_socket(server.address).await.map_err(|error| error.to_string())?;
    let config = ClientConfig {
        stun_serv_addr: server.address.to_string(),
        turn_serv_addr: server.address.to_string(),
        username: login.username.clone(),
        password: login.password.clone(),
        realm: String::new(),
        software: String::new(),
        rto_in_ms: 0,
        conn: Arc::new(socket),
        vnet: None,
    };
    let client = ForeignClient::new(config).await.map_err(|error| error.to_string())?;
    client.listen().await.map_err(|error| error.to_string())?;
    let met = match client.allocate().await {
        Ok(relay) => {
            let met = both_ways(first, relayed, &relay, server.options.timeout / TRIES).await;
            // Gives its allocation back.
            let closed = relay.close().await.map_err(|error| error.to_string());
            met.and_then(|detail| closed.map(|()| detail))
        }
        Err(error) => Err(error.to_string()),
    };
    // Ends its reader.
    let _ = client.close().await;
    met
}

async fn both_ways(
    first: &mut Client,
    relayed: SocketAddr,
    relay: &impl Conn,
    pause: Duration,
) -> Result<String, String> {
    let at = relay.local_addr().map_err(|error| error.to_string())?;
    first.permit(at).await.map_err(|error| format!("permission for {at}: {error:?}"))?;
    let payload = mark("from turn::client");
    let mut heard = false;
    for _ in 0..TRIES {
        relay.send_to(&payload, relayed).await.map_err(|error| error.to_string())?;
        heard = first.expect(&payload, pause).await.is_some();
        if heard {
            break;
        }
    }
    if !heard {
        return Err(format!("packets from {at} to {relayed} do not arrive"));
    }
    let payload = mark("to turn::client");
    let mut buffer = vec![0; 65_536];
    for _ in 0..TRIES {
        first.send_indication(at, &payload).await.map_err(|error| format!("Send: {error:?}"))?;
        match tokio::time::timeout(pause, relay.recv_from(&mut buffer)).await {
            Ok(Ok((len, from))) if buffer[..len] == payload && from == relayed => {
                return Ok(format!("another implementation (turn::client) allocates {at} and talks both ways"));
            }
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(error)) => return Err(error.to_string()),
        }
    }
    Err(format!("packets from {relayed} to {at} do not arrive"))
}
