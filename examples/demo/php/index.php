<?php
// Say who answers, and which OpenSSL this very process has loaded.
header("Content-Type: application/json");
echo json_encode([
    "name" => gethostname(),
    "language" => "PHP " . PHP_VERSION,
    "openssl" => curl_version()["ssl_version"],
]);
