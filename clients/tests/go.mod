module journey

go 1.23

require solverd v0.0.0

require gopkg.in/validator.v2 v2.0.1 // indirect

replace solverd => ../go
