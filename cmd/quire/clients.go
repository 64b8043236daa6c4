package main

import (
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// untilOpened has the streams of gRPC clients wait until the node serves clients.
func untilOpened(opened <-chan struct{}) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if strings.HasPrefix(info.FullMethod, "/"+pb.Inference_ServiceDesc.ServiceName+"/") {
			select {
			case <-opened:
			case <-stream.Context().Done():
				return status.FromContextError(stream.Context().Err()).Err()
			}
		}
		return handler(srv, stream)
	}
}
