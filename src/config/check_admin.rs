//! The keys of the admin API. No message here shows a token.

use std::path::PathBuf;

use crate::config::admin::{AdminConfig, Reach};
use crate::config::check::Check;
use crate::config::document::Node;
use crate::config::environment::Environment;
use crate::config::error::ConfigError;
use crate::credentials::Secret;

/// Fewer bytes would be worth guessing.
const TOKEN_BYTES_MIN: usize = 16;

const FILE: &str = "http.admin_token_file";
const CREDENTIAL: &str = "http.admin_token_credential";

impl Check {
    pub(crate) fn admin(&mut self) -> AdminConfig {
        AdminConfig {
            token: self.admin_token(),
            uids: self.uids("http.admin_uids"),
            revocations_file: self.path_of("auth.revocations_file").map(|(path, _)| path),
        }
    }

    fn admin_token(&mut self) -> Option<Secret> {
        let (file, credential) = (self.text_of(FILE), self.text_of(CREDENTIAL));
        let (key, node, token) = match (file, credential) {
            (None, None) => return None,
            (Some(_), Some((_, node))) => {
                self.wrong(&node, CREDENTIAL, format!("{FILE} names a token already; leave one of them out"));
                return None;
            }
            (Some((path, node)), None) => {
                let token = self.secret_file(&node, FILE, &path)?;
                (FILE, node, token)
            }
            (None, Some((_, node))) => {
                let token = self.credential(&node, CREDENTIAL)?;
                (CREDENTIAL, node, token)
            }
        };
        if token.expose().len() < TOKEN_BYTES_MIN {
            let message = format!(
                "holds {} bytes; at least {TOKEN_BYTES_MIN} are needed, `openssl rand -hex 32` makes a good one",
                token.expose().len()
            );
            self.wrong(&node, key, message);
            return None;
        }
        if !token.expose().iter().all(u8::is_ascii_graphic) {
            let message = "holds a blank, a second line or a letter that is not ASCII, which no header can carry; \
                 `openssl rand -hex 32` makes a good one";
            self.wrong(&node, key, message);
            return None;
        }
        Some(token)
    }

    fn text_of(&mut self, key: &'static str) -> Option<(String, Node)> {
        let node = self.get(key);
        self.text(&node, key).filter(|text| !text.is_empty()).map(|text| (text, node))
    }

    fn path_of(&mut self, key: &'static str) -> Option<(PathBuf, Node)> {
        self.text_of(key).map(|(text, node)| (self.beside(&node.place, &text), node))
    }

    /// What `Reach::find` gives.
    pub(crate) fn reach(mut self, environment: &Environment, source: String) -> Result<Reach, ConfigError> {
        let listen = self.http_listen(&[]);
        let file = self.path_of(FILE).map(|(path, _)| path);
        let credential = self.text_of(CREDENTIAL).map(|(name, _)| name);
        let directory = environment.credentials_directory();
        let token_file = file.or_else(|| Some(PathBuf::from(directory?).join(credential?)));
        self.into_problems().map_or(Ok(Reach { listen, token_file, source }), Err)
    }
}
