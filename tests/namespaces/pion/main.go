// One end of a call with Pion, the counterpart of tests/browser/end.mjs: the same lines of JSON, the same numbered
// messages over a data channel that repeats nothing and keeps no order. Built against Debian's packages of Pion.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pion/webrtc"
)

const poll = 50 * time.Millisecond

type iceServer struct {
	URLs       json.RawMessage `json:"urls"`
	Username   string          `json:"username"`
	Credential string          `json:"credential"`
}

// task is what the runner says first, and later.
type task struct {
	Role       string      `json:"role"`
	IceServers []iceServer `json:"iceServers"`
	Count      int         `json:"count"`
	EveryMs    float64     `json:"everyMs"`
	Size       int         `json:"size"`
	Seconds    float64     `json:"seconds"`
	SDP        string      `json:"sdp"`
	Over       bool        `json:"over"`
}

type told struct {
	SDP        string   `json:"sdp"`
	Candidates []string `json:"candidates"`
	Errors     []string `json:"errors"`
}

type result struct {
	Sent     int    `json:"sent"`
	Received int    `json:"received"`
	Repeated int    `json:"repeated"`
	Wrong    int    `json:"wrong"`
	State    string `json:"state"`
	Missing  []int  `json:"missing"`
}

var input = bufio.NewReader(os.Stdin)

// hear gives the next line, and ends the program with the runner.
func hear() task {
	line, err := input.ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		os.Exit(0)
	}
	check(err)
	var heard task
	check(json.Unmarshal(line, &heard))
	return heard
}

func say(what any) {
	line, err := json.Marshal(what)
	check(err)
	fmt.Println(string(line))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// message is what number N carries, which both ends know.
func message(number, size int) []byte {
	bytes := make([]byte, size)
	binary.BigEndian.PutUint32(bytes, uint32(number))
	for at := 4; at < size; at++ {
		bytes[at] = byte(number*31 + at*7)
	}
	return bytes
}

type end struct {
	task       task
	connection *webrtc.PeerConnection
	opened     chan struct{}

	lock    sync.Mutex // guards what follows
	channel *webrtc.DataChannel
	seen    map[int]bool
	result  result
}

func newEnd(what task) *end {
	configuration := webrtc.Configuration{ICETransportPolicy: webrtc.ICETransportPolicyRelay}
	for _, server := range what.IceServers {
		var urls []string
		if json.Unmarshal(server.URLs, &urls) != nil {
			urls = make([]string, 1)
			check(json.Unmarshal(server.URLs, &urls[0]))
		}
		configuration.ICEServers = append(configuration.ICEServers, webrtc.ICEServer{
			URLs: urls, Username: server.Username, Credential: server.Credential,
		})
	}
	connection, err := webrtc.NewPeerConnection(configuration)
	check(err)
	return &end{task: what, connection: connection, opened: make(chan struct{}), seen: map[int]bool{}}
}

func (e *end) use(channel *webrtc.DataChannel) {
	e.lock.Lock()
	e.channel = channel
	e.lock.Unlock()
	channel.OnMessage(func(message webrtc.DataChannelMessage) { e.take(message.Data) })
	channel.OnOpen(func() { close(e.opened) })
}

func (e *end) take(data []byte) {
	number := -1
	if len(data) >= 4 {
		number = int(binary.BigEndian.Uint32(data))
	}
	expected := message(number, e.task.Size)
	e.lock.Lock()
	defer e.lock.Unlock()
	e.result.Received++
	if !bytes.Equal(data, expected) {
		e.result.Wrong++
	}
	if e.seen[number] {
		e.result.Repeated++
	}
	e.seen[number] = true
	if e.task.Role == "answer" {
		check(e.channel.Send(expected))
	}
}

func (e *end) describe(own webrtc.SessionDescription, err error) {
	check(err)
	gathered := webrtc.GatheringCompletePromise(e.connection)
	check(e.connection.SetLocalDescription(own))
	<-gathered
	facts := told{SDP: e.connection.LocalDescription().SDP, Candidates: []string{}, Errors: []string{}}
	for _, line := range strings.Split(facts.SDP, "\r\n") {
		if strings.HasPrefix(line, "a=candidate") {
			facts.Candidates = append(facts.Candidates, line[2:])
		}
	}
	say(facts)
}

func (e *end) offer() {
	ordered, retransmits := false, uint16(0)
	channel, err := e.connection.CreateDataChannel("numbered",
		&webrtc.DataChannelInit{Ordered: &ordered, MaxRetransmits: &retransmits})
	check(err)
	e.use(channel)
	e.describe(e.connection.CreateOffer(nil))
}

func (e *end) answer(sdp string) {
	e.connection.OnDataChannel(e.use)
	check(e.connection.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: sdp}))
	e.describe(e.connection.CreateAnswer(nil))
}

// send goes by the clock, so that a slow timer catches up.
func (e *end) send() {
	began := time.Now()
	for number := 0; number < e.task.Count; number++ {
		at := time.Duration(float64(number) * e.task.EveryMs * float64(time.Millisecond))
		time.Sleep(time.Until(began.Add(at)))
		check(e.channel.Send(message(number, e.task.Size)))
		e.lock.Lock()
		e.result.Sent++
		e.lock.Unlock()
	}
}

func (e *end) results() result {
	e.lock.Lock()
	defer e.lock.Unlock()
	now := e.result
	now.State, now.Missing = e.connection.ConnectionState().String(), []int{}
	for number := 0; number < e.task.Count; number++ {
		if !e.seen[number] {
			now.Missing = append(now.Missing, number)
		}
	}
	return now
}

func call(what task) {
	e := newEnd(what)
	defer e.connection.Close()
	if what.Role == "offer" {
		e.offer()
		heard := hear()
		if heard.Over {
			return
		}
		check(e.connection.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: heard.SDP}))
	} else {
		e.answer(hear().SDP)
	}
	<-e.opened
	say(map[string]bool{"opened": true})
	if what.Role == "offer" {
		e.send()
	}
	until := time.Now().Add(time.Duration(what.Seconds * float64(time.Second)))
	for len(e.results().Missing) > 0 && time.Now().Before(until) {
		time.Sleep(poll)
	}
	say(e.results())
	hear()
}

func main() {
	say(map[string]string{"ready": "pion"})
	for {
		call(hear())
		say(map[string]bool{"closed": true})
	}
}
