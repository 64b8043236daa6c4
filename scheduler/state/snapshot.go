package state

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/encoding/protodelim"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// snapshotVersion is the newest layout of snapshots that this version reads and the one it writes.
const snapshotVersion = 1

// maxSnapshotRecord bounds one record, in bytes: above what the largest prompt and MaxOutputTokens
// take, far below what a hostile length prefix could ask for.
const maxSnapshotRecord = 5*MaxOutputTokens + 12<<20

// WriteTo writes the view as length-delimited pb.SnapshotRecord messages: the header, the nodes by
// id, the models and pools by name, the cordons and workers by id, the tenants by name, what has come of
// prompts, the requests by id. The same state gives the same bytes.
func (v *View) WriteTo(w io.Writer) (int64, error) {
	out := bufio.NewWriterSize(w, 256<<10)
	options := protodelim.MarshalOptions{}
	options.Deterministic = true
	var total int64
	write := func(r *pb.SnapshotRecord) error {
		n, err := options.MarshalTo(out, r)
		total += int64(n)
		return err
	}
	err := write(&pb.SnapshotRecord{Record: &pb.SnapshotRecord_Header{Header: &pb.SnapshotHeader{
		Version:   snapshotVersion,
		Index:     v.index,
		ChainHash: v.chainHash,
		TimeMs:    v.timeMS,
		Retention: v.keep.ToProto(),
	}}})
	for node := range v.Nodes() {
		if err != nil {
			break
		}
		err = write(&pb.SnapshotRecord{Record: &pb.SnapshotRecord_Node{Node: node}})
	}
	for model := range v.Models() {
		if err != nil {
			break
		}
		if model.Identity != nil {
			err = write(&pb.SnapshotRecord{Record: &pb.SnapshotRecord_Model{Model: model.Identity}})
		}
	}
	for pool := range v.Pools() {
		if err != nil {
			break
		}
		err = write(&pb.SnapshotRecord{Record: &pb.SnapshotRecord_Pool{Pool: pool}})
	}
	for c := range list[*cordoned](v.db, cordonsTable, "id") {
		if err != nil {
			break
		}
		err = write(&pb.SnapshotRecord{Record: &pb.SnapshotRecord_CordonedWorker{CordonedWorker: &pb.CordonedWorker{Id: c.id, SinceMs: c.sinceMS}}})
	}
	for worker := range v.Workers() {
		if err != nil {
			break
		}
		err = write(&pb.SnapshotRecord{Record: &pb.SnapshotRecord_Worker{Worker: worker}})
	}
	for account := range v.Accounts() {
		if err != nil {
			break
		}
		err = write(&pb.SnapshotRecord{Record: &pb.SnapshotRecord_Tenant{Tenant: account.toProto()}})
	}
	for upload := range v.uploads() {
		if err != nil {
			break
		}
		err = write(&pb.SnapshotRecord{Record: &pb.SnapshotRecord_Upload{Upload: upload}})
	}
	for request := range v.Requests() {
		if err != nil {
			break
		}
		err = write(&pb.SnapshotRecord{Record: &pb.SnapshotRecord_Request{Request: request.toProto()}})
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return total, fmt.Errorf("write snapshot: %w", err)
	}
	return total, nil
}

// Restore replaces the whole state with a snapshot's. On an error the state is as before.
func (s *Store) Restore(r io.Reader) error {
	db, v, err := readSnapshot(r)
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	s.db = db
	s.view.Store(v)
	return nil
}

func readSnapshot(r io.Reader) (*memdb.MemDB, *View, error) {
	in := bufio.NewReaderSize(r, 256<<10)
	options := protodelim.UnmarshalOptions{MaxSize: maxSnapshotRecord}
	var record pb.SnapshotRecord
	if err := options.UnmarshalFrom(in, &record); err != nil {
		return nil, nil, fmt.Errorf("header: %w", noEOF(err))
	}
	header := record.GetHeader()
	switch {
	case header == nil:
		return nil, nil, errors.New("the first record is not a header")
	case header.GetVersion() != snapshotVersion:
		return nil, nil, fmt.Errorf("snapshot version %d; this version of Quire reads %d", header.GetVersion(), snapshotVersion)
	}
	keep := retentionFromProto(header.GetRetention())
	if err := keep.Validate(); err != nil {
		return nil, nil, fmt.Errorf("header: %w", err)
	}
	db := newDB()
	v := &View{keep: keep, index: header.GetIndex(), chainHash: header.GetChainHash(), timeMS: header.GetTimeMs()}
	txn := db.Txn(true)
	defer txn.Abort()
	// How many requests a tenant has is counted, not written, and so is what a model has.
	a := &application{txn: txn, accounts: map[string]*Account{}, models: map[string]*Model{}, ending: map[string]bool{}}
	for n := 1; ; n++ {
		record := &pb.SnapshotRecord{}
		err := options.UnmarshalFrom(in, record)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("record %d: %w", n, err)
		}
		switch record := record.GetRecord().(type) {
		case *pb.SnapshotRecord_Node:
			if first[*pb.Node](txn, nodesTable, record.Node.GetId()) != nil {
				return nil, nil, fmt.Errorf("record %d: node %q is there twice", n, record.Node.GetId())
			}
			err = txn.Insert(nodesTable, record.Node)
		case *pb.SnapshotRecord_Worker:
			if first[*pb.WorkerInfo](txn, workersTable, record.Worker.GetId()) != nil {
				return nil, nil, fmt.Errorf("record %d: worker %q is there twice", n, record.Worker.GetId())
			}
			a.model(record.Worker.GetModel()).Workers++
			err = txn.Insert(workersTable, record.Worker)
		case *pb.SnapshotRecord_Model:
			if a.models[record.Model.GetName()] != nil {
				return nil, nil, fmt.Errorf("record %d: model %q is there twice, or after its workers", n, record.Model.GetName())
			}
			a.model(record.Model.GetName()).Identity = record.Model
		case *pb.SnapshotRecord_Pool:
			if first[*pb.Pool](txn, poolsTable, record.Pool.GetName()) != nil {
				return nil, nil, fmt.Errorf("record %d: pool %q is there twice", n, record.Pool.GetName())
			}
			err = txn.Insert(poolsTable, record.Pool)
		case *pb.SnapshotRecord_CordonedWorker:
			if record.CordonedWorker.GetId() == "" {
				return nil, nil, fmt.Errorf("record %d: a cordoned worker has no id", n)
			}
			err = txn.Insert(cordonsTable, &cordoned{id: record.CordonedWorker.GetId(), sinceMS: record.CordonedWorker.GetSinceMs()})
		case *pb.SnapshotRecord_Upload:
			if first[*upload](txn, uploadsTable, record.Upload.GetRequestId()) != nil {
				return nil, nil, fmt.Errorf("record %d: the prompt of %q is there twice", n, record.Upload.GetRequestId())
			}
			err = txn.Insert(uploadsTable, record.Upload)
		case *pb.SnapshotRecord_Tenant:
			if a.accounts[record.Tenant.GetName()] != nil {
				return nil, nil, fmt.Errorf("record %d: tenant %q is there twice, or after its requests", n, record.Tenant.GetName())
			}
			a.accounts[record.Tenant.GetName()] = accountFromProto(record.Tenant)
		case *pb.SnapshotRecord_Request:
			if state := record.Request.GetState(); state < pb.RequestState(Queued) || state > pb.RequestState(Finished) {
				return nil, nil, fmt.Errorf("record %d: request state %d is unknown", n, state)
			}
			request := fromProto(record.Request)
			if request.Request == nil {
				return nil, nil, fmt.Errorf("record %d: %w", n, errIncomplete)
			}
			if n, most := len(request.Outputs), choices(request.Request); n != 0 && n != most {
				return nil, nil, fmt.Errorf("record %d: %d outputs of a request with %d choices", n, n, most)
			}
			if first[*Record](txn, requestsTable, request.Request.GetId()) != nil {
				return nil, nil, fmt.Errorf("record %d: request %q is there twice", n, request.Request.GetId())
			}
			if request.Phase == Finished {
				a.keepEnd(request)
			} else {
				a.account(request.Request.GetTenant()).Live += int64(choices(request.Request))
				a.model(request.Request.GetModel()).Live++
			}
			err = txn.Insert(requestsTable, request)
		default:
			err = ErrUnknownCommand
		}
		if err != nil {
			return nil, nil, fmt.Errorf("record %d: %w", n, err)
		}
	}
	a.keepAccounts()
	a.keepModels()
	v.kept = a.kept
	txn.Commit()
	v.db = db.Snapshot()
	return db, v, nil
}

// noEOF names an empty file as what it is: a cut one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
