//! Whether connections are accepted at the moment: while a process hands its sockets to another one it leaves new
//! connections in the queue of their listener.

use tokio::sync::watch;

/// Open or closed, for all listeners that hold a clone.
#[derive(Clone, Debug)]
pub(crate) struct Gate(watch::Sender<bool>);

impl Default for Gate {
    fn default() -> Self {
        Self::new(true)
    }
}

impl Gate {
    pub(crate) fn new(is_open: bool) -> Self {
        Self(watch::Sender::new(is_open))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn close(&self) {
        self.0.send_replace(false);
    }

    async fn until(&self, is_open: bool) {
        // The sender is ours: it lives as long as this wait.
        let _ = self.0.subscribe().wait_for(|open| *open == is_open).await;
    }

    /// What `accept` gives while the gate is open; it is begun anew whenever the gate was closed in between.
    pub(crate) async fn accept<T, F: Future<Output = T>>(&self, mut accept: impl FnMut() -> F) -> T {
        loop {
            self.until(true).await;
            tokio::select! {
                biased;
                () = self.until(false) => {}
                accepted = accept() => return accepted,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_closed_gate_leaves_connections_where_they_wait() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gate = Gate::new(false);
        let _client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let accepting = gate.accept(|| listener.accept());
        let mut accepting = std::pin::pin!(accepting);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut accepting).await.is_err());
        gate.open();
        accepting.await.unwrap();
        let idle = gate.accept(|| listener.accept());
        let mut idle = std::pin::pin!(idle);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut idle).await.is_err());
        gate.close();
        let _later = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut idle).await.is_err(), "closed again");
        gate.open();
        idle.await.unwrap();
    }
}
