//! Connections that notice when the other side is gone.

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

/// A connection that fails when nothing has come from the other side for a time. Whatever comes is a sign of life, and so is
/// that what could not be written can be: HTTP/2's answers to pings are not enough, since they come behind the rows that
/// are on their way, and a slow network would be taken for one that is cut. Pings only see to it that something comes.
#[derive(Debug)]
pub(super) struct LivenessStream<T> {
    stream: T,
    idle_timeout: Duration,
    /// When it is lost, unless there is a sign of life.
    idle_timer: Pin<Box<Sleep>>,
    /// A write waits for room.
    write_blocked: bool,
}

impl<T> LivenessStream<T> {
    /// `stream`, which fails after so much `idle_timeout`. To be made within a runtime of tokio.
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

    /// For whoever waits: ready if there is nothing to wait for.
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
            // Without a budget nobody has looked whether there is room.
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
    /// Two of them are too much.
    const PAUSE: Duration = Duration::from_millis(1100);

    /// Runs `test` on a connection that holds ten bytes.
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
            let begun = Instant::now();
            let lost = near.read_u8().await.unwrap_err();
            assert_eq!(lost.kind(), io::ErrorKind::TimedOut);
            assert!(begun.elapsed() >= IDLE_TIMEOUT, "lost too early");
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

    /// It says nothing, but takes what it is sent.
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

    /// What the system has room for is no sign of anybody.
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
