//! A webhook for usage records.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

/// Takes what is posted; the first answers are as told, all others 204.
pub struct Hook {
    pub url: String,
    lines: Arc<Mutex<Vec<String>>>,
    pub tokens: Arc<Mutex<Vec<String>>>,
}

impl Hook {
    pub fn start(answers: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/usage", listener.local_addr().unwrap());
        let (lines, tokens) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (heard, seen) = (Arc::clone(&lines), Arc::clone(&tokens));
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut reader = BufReader::new(stream.unwrap());
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
                }
                let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name).map(ToOwned::to_owned));
                assert!(head.starts_with("POST /usage HTTP/1.1\r\n"), "{head}");
                let mut body = vec![0; field("Content-Length: ").unwrap().parse().unwrap()];
                reader.read_exact(&mut body).unwrap();
                seen.lock().unwrap().extend(field("Authorization: "));
                // What is refused was heard all the same: it must come again.
                heard.lock().unwrap().extend(String::from_utf8(body).unwrap().lines().map(ToOwned::to_owned));
                let answer = answers.get(number).unwrap_or(&"HTTP/1.1 204 No Content\r\n\r\n");
                let _ = reader.get_mut().write_all(answer.as_bytes());
            }
        });
        Self { url, lines, tokens }
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}
