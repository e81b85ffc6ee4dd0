// containerd-stargz-grpc out of the library that Debian ships without its daemon: the snapshotter service of
// stargz-snapshotter behind containerd's snapshots API on a unix socket, as its own command does it.
//
//	containerd-stargz-grpc -address SOCKET -root DIRECTORY -config FILE
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/keychain/dockerconfig"
	"github.com/pelletier/go-toml"
	"google.golang.org/grpc"
)

func main() {
	address := flag.String("address", "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock", "socket")
	root := flag.String("root", "/var/lib/containerd-stargz-grpc", "state")
	file := flag.String("config", "/etc/containerd-stargz-grpc/config.toml", "configuration")
	flag.Parse()
	if err := serve(context.Background(), *address, *root, *file); err != nil {
		fmt.Fprintln(os.Stderr, "containerd-stargz-grpc:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, address, root, file string) error {
	var config service.Config
	tree, err := toml.LoadFile(file)
	if err != nil {
		return err
	}
	if err := tree.Unmarshal(&config); err != nil {
		return err
	}
	snapshotter, err := service.NewStargzSnapshotterService(
		ctx, root, &config, service.WithCredsFuncs(dockerconfig.NewDockerconfigKeychain(ctx)))
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshots.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	listener, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ended
		snapshotter.Close() // unmounts every layer
		server.Stop()
	}()
	return server.Serve(listener)
}
