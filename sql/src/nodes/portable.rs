//! Nodes of one's own that plans for workers can carry.

use std::{any::TypeId, fmt, sync::Arc};

use datafusion::{
    common::{exec_datafusion_err, not_impl_err},
    error::Result,
    execution::TaskContext,
    physical_plan::ExecutionPlan,
};
use gatework_runtime::Executor;

use super::{NativeNode, NodeRegistry, OperatorExec, register_node};

/// A native node that can be sent to the workers of a cluster. Both the session's executor and each
/// worker's executor need the type: [`register_portable_node`].
pub trait PortableNode: NativeNode + Sized {
    /// Name of the node type in serialized plans, unique among the types of an application. At most
    /// 255 bytes.
    const NAME: &'static str;

    /// Returns the node, without its inputs, in bytes.
    ///
    /// # Errors
    /// If this node cannot be sent.
    fn encode(&self) -> Result<Vec<u8>>;

    /// Creates the node from what [`encode`](Self::encode) returned, over these inputs.
    ///
    /// # Errors
    /// If the bytes are not those of such a node.
    fn decode(
        bytes: &[u8],
        inputs: Vec<Arc<dyn ExecutionPlan>>,
        context: &TaskContext,
    ) -> Result<Self>;
}

type Encode = fn(&dyn ExecutionPlan) -> Option<Result<Vec<u8>>>;
type Decode =
    fn(&[u8], Vec<Arc<dyn ExecutionPlan>>, &TaskContext) -> Result<Arc<dyn ExecutionPlan>>;

/// How nodes of one type become bytes and back.
#[derive(Clone, Copy)]
pub(super) struct NodeFormat {
    kind: TypeId,
    encode: Encode,
    decode: Decode,
}

impl fmt::Debug for NodeFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeFormat")
    }
}

/// Makes plan nodes of type `N` native on all sessions and workers of `executor`, as
/// [`register_node`] does, and lets their plans be sent to workers and received by them.
///
/// # Panics
/// If another type is registered under the same name.
pub fn register_portable_node<N: PortableNode>(executor: &Executor) {
    const { assert!(N::NAME.len() <= 255, "the name of a node has at most 255 bytes") };
    register_node::<N>(executor);
    let format = NodeFormat {
        kind: TypeId::of::<N>(),
        encode: |node| Some(node.downcast_ref::<N>()?.encode()),
        decode: |bytes, inputs, context| Ok(Arc::new(N::decode(bytes, inputs, context)?)),
    };
    let before = NodeRegistry::of(executor).formats.write().insert(N::NAME, format);
    let is_same = before.is_none_or(|before| before.kind == format.kind);
    assert!(is_same, "two node types have the name '{}'", N::NAME);
}

/// Returns the bytes of a node of a registered type, with the name of its type.
///
/// # Errors
/// If the type is not registered, with what to do about it.
pub fn encode_node(executor: &Executor, node: &dyn ExecutionPlan) -> Result<Vec<u8>> {
    let registry = NodeRegistry::of(executor);
    // Not under the lock: a node may encode others.
    let formats = registry.formats.read().clone();
    let encoded = formats.iter().find_map(|(name, format)| Some((name, (format.encode)(node)?)));
    let Some((name, bytes)) = encoded else {
        let node_name = node.name();
        return match node.is::<OperatorExec>() || registry.find(node).is_some() {
            true => not_impl_err!(
                "{node_name} cannot be sent to workers: give it a type of its own that implements \
                 PortableNode, and register that type"
            ),
            false => not_impl_err!("no codec can send {node_name} to workers"),
        };
    };
    let bytes = bytes?;
    let mut message = vec![name.len() as u8];
    message.extend(name.as_bytes());
    message.extend(bytes);
    Ok(message)
}

/// Returns the node that [`encode_node`] turned into `message`, over these inputs.
///
/// # Errors
/// If its type is not registered with `executor`, or the bytes are damaged.
pub fn decode_node(
    executor: &Executor,
    message: &[u8],
    inputs: Vec<Arc<dyn ExecutionPlan>>,
    context: &TaskContext,
) -> Result<Arc<dyn ExecutionPlan>> {
    let parts = message.split_first().and_then(|(length, rest)| {
        let (name, bytes) = rest.split_at_checked(usize::from(*length))?;
        Some((std::str::from_utf8(name).ok()?, bytes))
    });
    let (name, bytes) = parts.ok_or_else(|| exec_datafusion_err!("a plan node is damaged"))?;
    let format = NodeRegistry::of(executor).formats.read().get(name).copied();
    let format = format.ok_or_else(|| {
        exec_datafusion_err!(
            "this worker does not know the plan node '{name}': register it with the worker's \
             executor (register_portable_node)"
        )
    })?;
    (format.decode)(bytes, inputs, context)
}
