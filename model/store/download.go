package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// download fetches a URL, going on where an earlier try stopped if the server still has that file.
type download struct{ url string }

// attempts is how often a transfer that broke off is taken up again.
const attempts = 5

func (d download) fetch(ctx context.Context, part string, progress Progress) error {
	client := &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		ResponseHeaderTimeout: 30 * time.Second,
	}}
	defer client.CloseIdleConnections()
	var err error
	for try := range attempts {
		var again bool
		if again, err = d.once(ctx, client, part, progress); err == nil || !again {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(200<<try) * time.Millisecond):
		}
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// once does one request. again says whether another may succeed.
func (d download) once(ctx context.Context, client *http.Client, part string, progress Progress) (again bool, err error) {
	f, err := os.OpenFile(part, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return false, err
	}
	defer f.Close()
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		return false, err
	}
	// Without a tag of what was being fetched, a rest could be that of another file.
	tag, _ := os.ReadFile(part + ".etag")
	if have > 0 && len(tag) > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		req.Header.Set("If-Range", string(tag))
	}
	resp, err := client.Do(req)
	if err != nil {
		return ctx.Err() == nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusPartialContent:
		var start int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &start); err != nil || start != have {
			return false, fmt.Errorf("GET %s: asked for the rest from byte %d, got %q", d.url, have, resp.Header.Get("Content-Range"))
		}
	case http.StatusOK:
		have = 0
		if err := errors.Join(f.Truncate(0), os.WriteFile(part+".etag", []byte(resp.Header.Get("ETag")), 0o644)); err != nil {
			return false, err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return false, err
		}
	case http.StatusRequestedRangeNotSatisfiable:
		// What is there is as long as the file or longer: start over.
		return true, errors.Join(fmt.Errorf("GET %s: %s", d.url, resp.Status), f.Truncate(0))
	default:
		return resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests, fmt.Errorf("GET %s: %s", d.url, resp.Status)
	}
	total := int64(0)
	if resp.ContentLength >= 0 {
		total = have + resp.ContentLength
	}
	n, err := io.Copy(f, &meter{ctx, resp.Body, have, total, progress})
	if err == nil && total > 0 && have+n != total {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return ctx.Err() == nil, err
	}
	return false, f.Close()
}
