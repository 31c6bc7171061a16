//! Connections that detect the loss of the other side.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::coop::has_budget_remaining,
    time::{Instant, Sleep, sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// A connection that fails when nothing arrives from the other side for a time. Received bytes are
/// a sign of life, and so is progress of a blocked write. HTTP/2's ping answers do not suffice:
/// they queue behind rows, and a slow network would count as broken. Pings only ensure that bytes
/// arrive.
#[derive(Debug)]
pub(super) struct LivenessStream<T> {
    stream: T,
    idle_timeout: Duration,
    /// Expires when the connection counts as lost; reset by each sign of life.
    idle_timer: Pin<Box<Sleep>>,
    /// Whether a write waits for room.
    write_blocked: bool,
}

impl<T> LivenessStream<T> {
    /// Wraps `stream`, which fails after `idle_timeout` without a sign of life. Called within a
    /// tokio runtime.
    pub(super) fn new(stream: T, idle_timeout: Duration) -> Self {
        Self {
            stream,
            idle_timeout,
            idle_timer: Box::pin(sleep(idle_timeout)),
            write_blocked: false,
        }
    }

    fn reset_idle_timer(&mut self) {
        self.idle_timer.as_mut().reset(Instant::now() + self.idle_timeout);
    }

    /// Called when the stream is pending: fails if the idle timer has expired.
    fn poll_idle_timeout(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.idle_timer.as_mut().poll(context));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "keep-alive timeout"))
    }

    fn written<V>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<V>>,
    ) -> Poll<io::Result<V>> {
        if written.is_pending() {
            // Without coop budget tokio has not checked whether there is room.
            self.write_blocked |= has_budget_remaining();
            return self.poll_idle_timeout(context).map(Err);
        }
        if std::mem::take(&mut self.write_blocked) {
            self.reset_idle_timer();
        }
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for LivenessStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending() {
            return self.poll_idle_timeout(context).map(Err);
        }
        self.reset_idle_timer();
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for LivenessStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.written(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.written(context, shut)
    }
}

impl Connected for LivenessStream<TcpStream> {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        runtime::Builder,
        time::timeout,
    };

    use super::*;

    const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
    /// Two pauses exceed `IDLE_TIMEOUT`.
    const PAUSE: Duration = Duration::from_millis(1100);

    /// Runs `test` on a connection that buffers ten bytes.
    fn with_liveness_stream(test: impl AsyncFnOnce(LivenessStream<DuplexStream>, DuplexStream)) {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (near, far) = duplex(10);
            test(LivenessStream::new(near, IDLE_TIMEOUT), far).await;
        });
    }

    #[test]
    fn silence_is_a_loss() {
        with_liveness_stream(async |mut near, _far| {
            let lost = near.read_u8().await.unwrap_err();
            assert_eq!(lost.kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn so_is_silence_while_a_write_waits() {
        with_liveness_stream(async |mut near, _far| {
            let lost = near.write_all(&[0; 11]).await.unwrap_err();
            assert_eq!(lost.kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn what_comes_slowly_is_not() {
        with_liveness_stream(async |mut near, mut far| {
            for byte in 0..3 {
                assert!(timeout(PAUSE, near.read_u8()).await.is_err());
                far.write_u8(byte).await.unwrap();
                assert_eq!(near.read_u8().await.unwrap(), byte);
            }
        });
    }

    /// The other side sends nothing, but reads what it receives.
    #[test]
    fn what_is_taken_slowly_is_not() {
        with_liveness_stream(async |mut near, mut far| {
            near.write_all(&[0; 10]).await.unwrap();
            for byte in 0..3 {
                let write = poll_fn(|context| Pin::new(&mut near).poll_write(context, &[byte]));
                let (written, _) = tokio::join!(write, async {
                    tokio::time::sleep(PAUSE).await;
                    far.read_u8().await.unwrap()
                });
                assert_eq!(written.unwrap(), 1);
            }
        });
    }

    /// Room in the system's buffer is no sign of life.
    #[test]
    fn what_nobody_takes_is() {
        with_liveness_stream(async |mut near, _far| {
            for byte in 0..2 {
                tokio::time::sleep(PAUSE).await;
                near.write_u8(byte).await.unwrap();
            }
            assert!(timeout(Duration::from_millis(1), near.read_u8()).await.unwrap().is_err());
        });
    }
}
