// Package prefix knows which worker's KV cache holds which blocks, so that a prompt can go where the
// longest part of it need not be computed.
//
// It must not import gRPC, or anything else of ours but kvcache, which names blocks: the simulator
// runs this very code.
package prefix
