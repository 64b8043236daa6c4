package state

import (
	"reflect"
	"testing"

	"github.com/hashicorp/go-memdb"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestChainHashCoversTheState: the same log applied to another effect has another hash.
func TestChainHashCoversTheState(t *testing.T) {
	log := [][]byte{encode(t, 1, submit("a", 1, 2, 3)), encode(t, 2, assign("a", "w", 1, 1)), encode(t, 3, finish("a", pb.FinishReason_FINISH_REASON_STOP))}
	// after changes the record before an entry, as a version that applies differently would have.
	apply := func(at int, change func(*Record)) uint64 {
		s := New()
		for i, data := range log {
			if i == at {
				r := *s.View().Request("a")
				change(&r)
				txn := s.db.Txn(true)
				must(txn.Insert(requestsTable, &r))
				txn.Commit()
			}
			if _, err := s.Apply(uint64(i+1), 1, data); err != nil {
				t.Fatal(err)
			}
		}
		return s.View().ChainHash()
	}
	same := apply(1, func(*Record) {})
	if same != apply(2, func(*Record) {}) {
		t.Fatal("the same log to the same effect was hashed differently")
	}
	for name, other := range map[string]uint64{
		"attempts":    apply(1, func(r *Record) { r.Attempts++ }),
		"a deadline":  apply(1, func(r *Record) { r.DeadlineMS = 9 }),
		"the worker":  apply(2, func(r *Record) { r.WorkerID = "v" }),
		"the output":  apply(2, func(r *Record) { r.Outputs = []*pb.Output{{TokenIds: []int32{7}}} }),
		"the phase":   apply(1, func(r *Record) { r.Phase = Finished }),
		"the gateway": apply(1, func(r *Record) { r.Request = WithGateway(r.Request, "another") }),
	} {
		if other == same {
			t.Errorf("with another %s the hash is the same", name)
		}
	}
}

// TestDigestKnowsEveryField changes each field of what is in the tables and is no message of protobuf's.
func TestDigestKnowsEveryField(t *testing.T) {
	of := func(object any) uint64 { return sum(memdb.Changes{{Table: requestsTable, After: object}}) }
	for _, object := range []any{
		&Record{Request: &pb.Request{Id: "a"}}, &Account{Name: "a"}, &Model{Name: "a"},
	} {
		kind := reflect.TypeOf(object).Elem()
		for i := range kind.NumField() {
			changed := reflect.New(kind)
			changed.Elem().Set(reflect.ValueOf(object).Elem())
			field := reflect.NewAt(kind.Field(i).Type, changed.Elem().Field(i).Addr().UnsafePointer()).Elem()
			switch value := field.Interface().(type) {
			case *pb.Request:
				field.Set(reflect.ValueOf(&pb.Request{Id: "b"}))
			case *pb.Usage:
				field.Set(reflect.ValueOf(&pb.Usage{CompletionTokens: 1}))
			case *pb.Tenant:
				field.Set(reflect.ValueOf(&pb.Tenant{Name: "b"}))
			case *pb.ModelIdentity:
				field.Set(reflect.ValueOf(&pb.ModelIdentity{Name: "b"}))
			case []*pb.Output:
				field.Set(reflect.ValueOf([]*pb.Output{{}}))
			case []byte:
				field.Set(reflect.ValueOf([]byte{1}))
			case Position:
				field.Set(reflect.ValueOf(Position{1, 2}))
			default:
				switch field.Kind() {
				case reflect.String:
					field.SetString("b")
				case reflect.Bool:
					field.SetBool(true)
				case reflect.Int, reflect.Int32, reflect.Int64:
					field.SetInt(field.Int() + 1)
				case reflect.Uint8, reflect.Uint32, reflect.Uint64:
					field.SetUint(field.Uint() + 1)
				default:
					t.Fatalf("%v.%s: the test cannot change a %T", kind, kind.Field(i).Name, value)
				}
			}
			if of(changed.Interface()) == of(object) {
				t.Errorf("%v with another %s has the same digest", kind, kind.Field(i).Name)
			}
		}
	}
}
