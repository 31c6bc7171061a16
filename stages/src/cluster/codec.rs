//! Serialization of an application's own plan nodes, by the registry of an executor.

use std::sync::Arc;

use datafusion::{
    error::Result,
    execution::{TaskContext, session_state::SessionStateBuilder},
    physical_plan::ExecutionPlan,
};
use datafusion_distributed::DistributedExt;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use gatework_runtime::Executor;
use gatework_sql::nodes::{decode_node, encode_node};

/// Returns `builder` with the codecs of a session or a worker on `executor`: that of the node types
/// registered with the executor, then those of the application. Both sides need the same order,
/// since a serialized node names its codec by position.
pub(super) fn with_codecs(
    mut builder: SessionStateBuilder,
    executor: &Executor,
    codecs: &[Arc<dyn PhysicalExtensionCodec>],
) -> SessionStateBuilder {
    builder.set_distributed_user_codec(NodeCodec(executor.clone()));
    for codec in codecs {
        builder.set_distributed_user_codec_arc(codec.clone());
    }
    builder
}

/// The codec of the node types that are registered with an executor.
#[derive(Debug)]
struct NodeCodec(Executor);

impl PhysicalExtensionCodec for NodeCodec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        decode_node(&self.0, bytes, inputs.to_vec(), context)
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        bytes.extend(encode_node(&self.0, node.as_ref())?);
        Ok(())
    }
}
