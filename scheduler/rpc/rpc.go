package rpc

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// MaxIDBytes bounds ids of workers, gateways, nodes, pools and tenants.
	MaxIDBytes = 128
	// MaxModelBytes bounds names of models, and addresses.
	MaxModelBytes = 256
)

// Trailer sets the trailer of a unary call; in a call without gRPC there is none to set.
func Trailer(ctx context.Context) func(metadata.MD) {
	return func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) }
}

// NotLeading ends what was begun under a leader that is gone.
func NotLeading(what string) error {
	return status.Errorf(codes.Unavailable, "leadership was lost while %s; try again with the same id", what)
}

// Unsure is why a leader does not answer that must have the newest state, and could not make sure that it has.
func Unsure(err error) error {
	return status.Error(codes.Unavailable, fmt.Sprintf("the leader could not make sure that it still leads: %v", err))
}

// Invalid refuses a message for one of its fields.
func Invalid(field, format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, "%s: %s", field, fmt.Sprintf(format, args...))
}

// Exhausted says what is used up, and when trying again makes sense.
func Exhausted(message string, retry time.Duration) error {
	return Detailed(codes.ResourceExhausted, message, &errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
}

// Detailed is a status with what a program needs of it.
func Detailed(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	st := status.New(code, message)
	if with, err := st.WithDetails(details...); err == nil {
		st = with
	}
	return st.Err()
}

// Cut shortens a text to at most n bytes, at a character's end.
func Cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}
