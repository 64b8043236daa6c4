// Package model turns a GGUF file into something that runs: its shape ([Config]), tokenizer and chat
// template when it is opened, and, loaded onto a device, a forward pass ([Model]).
//
// A forward pass is written once per family of architectures, over the operations of package device,
// and knows nothing of what runs it. An architecture is an entry of a table: how its rotary pairs
// lie and which tensors it has besides the family's. Whatever a file holds that the entry does not
// account for is refused by name, tensors included: a model is computed as it was trained or not at
// all.
//
// The package imports device and its own subpackages (gguf, tokenizer, chat), never a particular
// device.
package model
