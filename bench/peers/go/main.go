// The Go peers, standard library only: `server HOST PORT` and `tls HOST PORT CERTIFICATE KEY` (net/http, the latter with
// HTTP/2 by ALPN), `gateway HOST PORT URL` (httputil).
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime"
)

type token struct {
	Token string `json:"token"`
}

func chat(w http.ResponseWriter, r *http.Request) {
	request := struct {
		Prompt string          `json:"prompt"`
		Mock   json.RawMessage `json:"mock"`
		Joined bool            `json:"joined"`
	}{}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	limit, rate := int64(200), 50.0
	options := mock{Tokens: &limit, Rate: &rate} // an explicit null makes a pointer nil
	if len(request.Mock) > 0 {
		if err := json.Unmarshal(request.Mock, &options); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	flusher, ok := w.(http.Flusher)
	if !ok {
		http.Error(w, "streaming unsupported", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")

	ctx := r.Context()
	from := open(request.Prompt, options)
	defer from.close()
	var frame bytes.Buffer
	for ready := from.next(ctx); ready != nil; ready = from.next(ctx) {
		for i, text := range ready {
			data, _ := json.Marshal(token{text})
			fmt.Fprintf(&frame, "data: %s\n\n", data)
			if request.Joined && i < len(ready)-1 {
				continue // the tokens of a pull in one write
			}
			if _, err := w.Write(frame.Bytes()); err != nil {
				return
			}
			flusher.Flush()
			frame.Reset()
		}
		if ctx.Err() != nil {
			return
		}
	}
	if ctx.Err() == nil {
		io.WriteString(w, "data: [DONE]\n\n")
	}
}

func stats(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"pulled": %d, "opened": %d, "closed": %d}`, pulled.Load(), opened.Load(), closed.Load())
}

func main() {
	log.SetFlags(0)
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1) // one worker, as everybody else
	}
	openEvents()
	role, address := os.Args[1], os.Args[2]+":"+os.Args[3]
	mux := http.NewServeMux()
	if role != "gateway" {
		mux.HandleFunc("/chat", chat)
		mux.HandleFunc("/stats", stats)
	} else {
		target, err := url.Parse(os.Args[4])
		if err != nil {
			log.Fatal(err)
		}
		proxy := httputil.NewSingleHostReverseProxy(target)
		proxy.FlushInterval = -1
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, 1024
		proxy.Transport = transport
		proxy.ErrorLog = log.New(io.Discard, "", 0)
		mux.Handle("/", proxy)
	}
	if role == "tls" {
		server := &http.Server{Addr: address, Handler: mux, ErrorLog: log.New(io.Discard, "", 0)}
		log.Fatal(server.ListenAndServeTLS(os.Args[4], os.Args[5]))
	}
	log.Fatal(http.ListenAndServe(address, mux))
}
