#!/bin/sh
# Makes a CA (ca.crt) and a certificate for localhost that it has signed (server.crt, server.key),
# for the example. Both are valid for 30 days.
set -eu
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=example CA" \
  -keyout ca.key -out ca.crt
openssl req -newkey rsa:2048 -nodes -subj "/CN=localhost" -keyout server.key -out server.csr
echo "subjectAltName=DNS:localhost" >server.ext
openssl x509 -req -days 30 -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial \
  -extfile server.ext -out server.crt
