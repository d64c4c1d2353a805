#!/usr/bin/ruby
# Say who answers, and which OpenSSL this very process has loaded.
require "json"
require "openssl"
require "socket"

print "Content-Type: application/json\r\n\r\n"
print JSON.generate(
  name: Socket.gethostname,
  language: "Ruby #{RUBY_VERSION}",
  openssl: OpenSSL::OPENSSL_LIBRARY_VERSION,
)
