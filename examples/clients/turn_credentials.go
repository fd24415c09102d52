package main

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"time"
)

// mint gives username and password that the relay accepts for ttl.
func mint(secret, user string, ttl time.Duration) (username, password string) {
	username = fmt.Sprintf("%d:%s", time.Now().Add(ttl).Unix(), user)
	mac := hmac.New(sha1.New, []byte(secret))
	mac.Write([]byte(username))
	return username, base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// ask gives the iceServers that the relay's endpoint has for this user.
func ask(relay, key, user string) (json.RawMessage, error) {
	query := url.Values{"username": {user}}
	request, err := http.NewRequest(http.MethodGet, relay+"/v1/credentials?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+key)
	client := http.Client{Timeout: 5 * time.Second}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the relay answers %d: %s", answer.StatusCode, body)
	}
	var credential struct {
		IceServers json.RawMessage `json:"iceServers"`
	}
	err = json.Unmarshal(body, &credential)
	return credential.IceServers, err
}

func main() {
	command, user := os.Args[1], os.Args[2]
	if command == "mint" {
		username, password := mint(os.Getenv("TURN_SECRET"), user, time.Hour)
		fmt.Printf("%s\n%s\n", username, password)
		return
	}
	iceServers, err := ask(os.Getenv("RELAY"), os.Getenv("RELAY_KEY"), user)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(iceServers))
}
