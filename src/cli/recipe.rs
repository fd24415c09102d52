//! `recipe`: what to write into the configuration of another program, so that it uses this server.
//!
//! `relay` holds what the configuration says about this server, `products` the lines of each program, `quote` how a value
//! stands in each language. The pages of docs/recipes show the same lines for an example; tests/recipes.rs compares them.

mod products;
mod quote;
mod relay;

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use self::products::{Recipe, recipe};
use self::relay::Relay;
use crate::cli::credentials::{address_to_the_world, guessed, servers, unix_now};
use crate::cli::load_existing;
use crate::config::Config;
use crate::failure::Failure;

pub(super) const HELP: &str = "Secrets and passwords are shown as ******** unless you give --show-secret. What is not for a file is on standard error.";

/// Options of `recipe`.
#[derive(Args, Debug)]
pub(super) struct RecipeOptions {
    /// The program
    #[arg(value_enum, value_name = "NAME", required_unless_present = "list", hide_possible_values = true)]
    name: Option<Product>,
    /// List the programs
    #[arg(long, conflicts_with = "name")]
    list: bool,
    /// Configuration file [default: /etc/throughway/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Host name or address of this server, instead of the one in the configuration
    #[arg(long, value_name = "HOST", value_parser = host)]
    host: Option<String>,
    /// Print secrets and passwords
    #[arg(long)]
    show_secret: bool,
}

/// The programs; each has a page in docs/recipes.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Product {
    /// Asterisk, which relays over TCP
    Asterisk,
    /// BigBlueButton
    #[value(name = "bigbluebutton", alias = "bbb")]
    BigBlueButton,
    /// A chatmail relay, for calls of Delta Chat
    Chatmail,
    /// ejabberd
    Ejabberd,
    /// Web pages that call FreeSWITCH (Verto)
    #[value(name = "freeswitch", alias = "verto")]
    FreeSwitch,
    /// Galene
    Galene,
    /// Home Assistant and go2rtc
    #[value(alias = "go2rtc", alias = "frigate")]
    HomeAssistant,
    /// Janus
    Janus,
    /// Jitsi Meet, and other users of Prosody
    #[value(alias = "prosody")]
    Jitsi,
    /// LiveKit; calls of Element Call
    #[value(name = "livekit", alias = "element-call", alias = "matrixrtc")]
    LiveKit,
    /// Synapse
    #[value(alias = "synapse")]
    Matrix,
    /// Mattermost Calls
    Mattermost,
    /// MediaMTX
    #[value(name = "mediamtx")]
    MediaMtx,
    /// Clients of mediasoup
    Mediasoup,
    /// Nextcloud Talk and its signaling server
    #[value(alias = "nextcloud-talk", alias = "nextcloud-aio")]
    Nextcloud,
    /// PeerJS and simple-peer
    #[value(name = "peerjs", alias = "simple-peer")]
    PeerJs,
    /// Rocket.Chat
    #[value(name = "rocketchat", alias = "rocket.chat")]
    RocketChat,
}

/// A name or an address as it may stand in a URI.
fn host(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let is_name =
        !bare.is_empty() && bare.len() < 254 && bare.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    if is_name || bare.parse::<std::net::IpAddr>().is_ok() {
        return Ok(bare.to_owned());
    }
    Err("expected a host name or an address without scheme and port, such as turn.example.org".to_owned())
}

pub(super) fn run(options: &RecipeOptions) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let Some(product) = options.name else {
        for product in Product::value_variants() {
            let Some(value) = product.to_possible_value() else { continue };
            writeln!(out, "{:15} {}", value.get_name(), value.get_help().map(ToString::to_string).unwrap_or_default())?;
        }
        return Ok(());
    };
    let config = load_existing(options.config.as_deref())?;
    let Recipe { blocks, mut notes } = of(&config, product, options).map_err(Failure::Usage)?;
    for (at, block) in blocks.iter().enumerate() {
        let blank = if at == 0 { "" } else { "\n" };
        writeln!(out, "{blank}{}", block.to_text())?;
    }
    out.flush()?;
    notes.extend(
        blocks.iter().filter(|block| block.is_without_comment()).map(|block| format!("this is {}", block.place)),
    );
    for note in notes {
        // With standard error closed there is no reader.
        let _ = writeln!(io::stderr(), "note: {note}");
    }
    Ok(())
}

fn of(config: &Config, product: Product, options: &RecipeOptions) -> Result<Recipe, String> {
    let now = unix_now().map_err(|error| error.to_string())?;
    let mut names = crate::api::uris::names(config);
    if let Some(host) = &options.host {
        names.public = Some(host);
    }
    let servers = servers(config, &names, None, address_to_the_world);
    let mut relay = Relay::new(config, servers, now, options.show_secret)?;
    if names.public.is_none() {
        relay.note_addresses(guessed(config).into_iter().filter_map(address_to_the_world));
    }
    recipe(product, relay)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_and_nothing_else() {
        for (text, taken) in [
            ("turn.example.org", "turn.example.org"),
            ("192.0.2.7", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
        ] {
            assert_eq!(host(text).as_deref(), Ok(taken));
        }
        for wrong in ["", "turn:turn.example.org", "turn.example.org:3478", "a b", "a'b", "[turn]x"] {
            assert!(host(wrong).unwrap_err().contains("such as"), "{wrong}");
        }
    }
}
