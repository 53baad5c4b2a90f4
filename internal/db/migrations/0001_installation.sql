-- +goose Up
CREATE TABLE installation (
    one         {{.Int}}  NOT NULL PRIMARY KEY CHECK (one = 1),
    id          {{.Text}} NOT NULL,
    environment {{.Text}} NOT NULL,
    made_at     {{.Int}}  NOT NULL,
    probed_at   {{.Int}}  NOT NULL
) {{.Table}};

INSERT INTO installation (one, id, environment, made_at, probed_at)
VALUES (1, '{{.Installation}}', '{{.Environment}}', {{.Now}}, 0);
