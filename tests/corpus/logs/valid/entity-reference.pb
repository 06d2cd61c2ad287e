
{
o

service.name

checkoutQ
'https://opentelemetry.io/schemas/1.37.0serviceservice.name"service.versionINFO